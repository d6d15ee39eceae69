"""Sections of any size through a network of one size: overlapping tiles in full batches, blended; test-time flips."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from cmseg_core.halving import in_halves
from cmseg_core.organelles.calibration import apply_temperature
from cmseg_core.organelles.model import OrganelleModel

SHARED = 4
"""Neighbouring tiles share at least one such part of their edge."""


def sections_at_once(height: int, width: int, size: int, batch_size: int) -> tuple[int, int]:
    """How many sections are predicted together, and in batches of how many tiles, so that few places stay empty.

    Parameters
    ----------
    height, width : int
        Of a section.
    size : int
        Edge of a tile.
    batch_size : int
        Largest batch.

    Returns
    -------
    sections, tiles : int
    """
    tiles = len(tile_starts(height, size)) * len(tile_starts(width, size))
    if tiles <= batch_size:
        return batch_size // tiles, batch_size // tiles * tiles
    return 1, -(-tiles // -(-tiles // batch_size))


def tile_starts(length: int, size: int) -> list[int]:
    """First voxels of the tiles of `size` that cover an edge of `length`: evenly spaced, with shares of a quarter."""
    if length <= size:
        return [0]
    count = 1 + -(-(length - size) // (size - size // SHARED))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def tile_weights(starts: list[int], size: int) -> NDArray[np.float32]:
    """Weight of every voxel along the edge of each tile: 1, but for ramps in the middle of what neighbours share.

    The weights of all tiles at a voxel sum to 1, and the ends of a tile, where the network lacks context, weigh least.

    Parameters
    ----------
    starts : list of int
        As :func:`tile_starts` gives them.
    size : int

    Returns
    -------
    ndarray of float32, shape (tiles, size)
    """
    places = np.array(starts)[:, None] + np.arange(size) + 0.5
    weights = np.ones(places.shape)
    ramp = max(size // SHARED, 1)
    for n, (before, after) in enumerate(pairwise(starts)):
        middle = (before + size + after) / 2
        weights[n] *= np.clip((middle - places[n]) / ramp + 0.5, 0, 1)
        weights[n + 1] *= np.clip((places[n + 1] - middle) / ramp + 0.5, 0, 1)
    return weights.astype(np.float32)


def predict_tiled(
    sections: NDArray[np.uint8], model: OrganelleModel, batch_size: int, flips: int = 1
) -> NDArray[np.float32]:
    """Calibrated class probabilities of sections of any size.

    Sections larger than the network's are tiled, and tiles blended where they overlap; smaller ones are mirrored at
    their edges.

    Parameters
    ----------
    sections : ndarray of uint8, shape (sections, height, width, channels)
    model : OrganelleModel
    batch_size : int
        Tiles that pass the network together.
    flips : {1, 4, 8}
        As for :func:`predict_flipped`.

    Returns
    -------
    ndarray of float32, shape (sections, height, width, classes)
    """
    size = model.section_size
    height, width = sections.shape[1:3]
    if (height, width) == (size, size):
        out = predict_flipped(sections, model, batch_size, flips)
        return apply_temperature(out, model.temperature)
    short = [(0, 0), (0, max(size - height, 0)), (0, max(size - width, 0)), (0, 0)]
    padded = np.pad(sections, short, mode="symmetric")
    rows, columns = tile_starts(height, size), tile_starts(width, size)
    down, across = tile_weights(rows, size), tile_weights(columns, size)
    places = list(product(range(len(sections)), range(len(rows)), range(len(columns))))
    out = np.zeros((*sections.shape[:3], len(model.taxonomy)), dtype=np.float32)
    for first in range(0, len(places), batch_size):
        part = places[first : first + batch_size]
        tiles = np.stack([padded[n, rows[r] : rows[r] + size, columns[c] : columns[c] + size] for n, r, c in part])
        for (n, r, c), tile in zip(part, predict_flipped(tiles, model, batch_size, flips), strict=True):
            target = out[n, rows[r] : rows[r] + size, columns[c] : columns[c] + size]
            weight = np.outer(down[r], across[c])[: target.shape[0], : target.shape[1], None]
            target += weight * tile[: target.shape[0], : target.shape[1]]
    return apply_temperature(out, model.temperature)


def predict_flipped(
    sections: NDArray[np.uint8], model: OrganelleModel, batch_size: int, flips: int
) -> NDArray[np.float32]:
    """Mean of what the network says of square sections seen in several ways.

    Parameters
    ----------
    sections : ndarray of uint8, shape (sections, size, size, channels)
        At most `batch_size`.
    model : OrganelleModel
    batch_size : int
    flips : {1, 4, 8}
        1: as they are; 4: also their mirror images along either axis and both; 8: quarter turns of all these too.

    Returns
    -------
    ndarray of float32, shape (sections, size, size, classes)
        Not calibrated.
    """
    total: NDArray[np.float32] | None = None
    for number in range(flips):
        turns, mirrored = (number // 2) * (2 if flips == 4 else 1), bool(number % 2)
        seen = np.rot90(sections, turns, axes=(1, 2))
        said = predict_sections(seen[:, :, ::-1] if mirrored else seen, model, batch_size)
        said = np.rot90(said[:, :, ::-1] if mirrored else said, -turns, axes=(1, 2))
        total = said if total is None else total + said
    assert total is not None
    return total if flips == 1 else total / np.float32(flips)


def predict_sections(sections: NDArray[np.uint8], model: OrganelleModel, batch_size: int) -> NDArray[np.float32]:
    """Class probabilities of up to `batch_size` sections as the network gives them.

    Parameters
    ----------
    sections : ndarray of uint8, shape (sections, height, width, channels)
    model : OrganelleModel
        Its temperature is left out.
    batch_size : int
        The batch is filled up to it, so that the network is compiled for one shape only.

    Returns
    -------
    ndarray of float32, shape (sections, height, width, classes)
    """
    batch = np.zeros((batch_size, *sections.shape[1:]), dtype=np.float32)
    np.divide(sections, np.float32(255), out=batch[: len(sections)], casting="unsafe")
    said = np.concatenate(in_halves(model.network.predict_on_batch, batch))
    return said[: len(sections)].astype(np.float32, copy=False)
