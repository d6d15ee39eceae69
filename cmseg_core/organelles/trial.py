"""Labelled cells labelled anew in every way that is compared: each direction, all three, and uncalibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cmseg_core.organelles.calibration import DeliveredVoxels, apply_temperature
from cmseg_core.organelles.dataset import Cube, LabelledCell, cube_of
from cmseg_core.organelles.fusion import FusedProbabilities, weights_of
from cmseg_core.organelles.inference import CellSegmentation, axes_of, on_cell, section_probabilities
from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.preprocess.resample import CubeGrid
from cmseg_core.schema import OrganellesConfig, PreprocessConfig

SURPLUS = 4
"""Voxels drawn of a cell for each one that is wanted: much of a crop is background."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What a model makes of one labelled cell.

    Attributes
    ----------
    fused : CellSegmentation
        From all directions, as the pipeline does it.
    single : tuple of CellSegmentation or None
        From the sections across z, y and x alone; None for an axis across which none are cut.
    uncalibrated : CellSegmentation
        As `fused`, with a temperature of 1.
    """

    fused: CellSegmentation
    single: tuple[CellSegmentation | None, ...]
    uncalibrated: CellSegmentation


def try_cell(
    cell: LabelledCell, model: OrganelleModel, config: OrganellesConfig, preprocess: PreprocessConfig
) -> Trial:
    """Label a labelled cell or field; the network sees every section once.

    Parameters
    ----------
    cell : LabelledCell
        Its labels serve for the resin's grey alone.
    model : OrganelleModel
    config : OrganellesConfig
        Rule of fusion, flips and filter; every direction that the shape allows is taken, whatever it says.
    preprocess : PreprocessConfig

    Returns
    -------
    Trial
    """
    config = config.model_copy(update={"directions": 3})
    volume = cube_of(cell, model.section_size, preprocess).image
    raw = replace(model, temperature=1.0)

    def empty(axes: tuple[int, ...]) -> FusedProbabilities:
        classes = len(model.taxonomy)
        return FusedProbabilities(volume.shape, classes, weights_of(config.fusion, model.fusion, axes, classes))

    axes = axes_of(volume, raw, config)
    fused, uncalibrated, single = empty(axes), empty(axes), {axis: empty((axis,)) for axis in axes}
    for axis, start, _, probabilities in section_probabilities(volume, raw, config):
        if probabilities is not None:
            calibrated = apply_temperature(probabilities, model.temperature)
            fused.add(axis, start, calibrated)
            single[axis].add(axis, start, calibrated)
            uncalibrated.add(axis, start, probabilities)

    def finished(one: FusedProbabilities) -> CellSegmentation:
        return on_cell(one, cell, model, config, preprocess)

    alone = tuple(finished(single[axis]) if axis in single else None for axis in range(3))
    return Trial(finished(fused), alone, finished(uncalibrated))


def directions_on(
    model: OrganelleModel, cubes: Sequence[Cube], seed: int = 0, cells: int = 16, voxels: int = 200_000
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.intp]]:
    """What each direction says of held-out voxels of the cube, for the fit of the fusion.

    Parameters
    ----------
    model : OrganelleModel
        Its own temperature is left out.
    cubes : sequence of Cube
        Labelled cells on the grid of the network; from a larger field its middle is taken.
    seed : int
        Of the draw of cells and voxels.
    cells, voxels : int
        At most so many are looked at.

    Returns
    -------
    probabilities : ndarray of float32, shape (voxels, 3, classes)
        Where no sections are cut across an axis, another direction speaks for it.
    truth : ndarray of uint8, shape (voxels,)
        Of voxels that the truth or a direction calls foreground.
    cell : ndarray of int, shape (voxels,)
        Which of `cubes` a voxel is of.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(cubes))[:cells]
    said, truth, cell = [], [], []
    for number in chosen:
        labels, opinions = _opinions(model, cubes[number])
        places = np.argwhere((labels > 0) | (opinions.argmax(axis=-1) > 0).any(axis=0))
        places = places[rng.permutation(len(places))[: voxels // len(chosen)]]
        z, y, x = places.T
        said.append(opinions[:, z, y, x].swapaxes(0, 1))
        truth.append(labels[z, y, x])
        cell.append(np.full(len(places), number))
    return np.concatenate(said), np.concatenate(truth), np.concatenate(cell)


def delivered_on(
    model: OrganelleModel,
    cells: Sequence[LabelledCell],
    preprocess: PreprocessConfig,
    seed: int = 0,
    count: int = 16,
    voxels: int = 64_000,
) -> DeliveredVoxels:
    """What each direction says of held-out voxels of the result, for the fit of a temperature.

    Parameters
    ----------
    model : OrganelleModel
        Its own temperature is left out.
    cells : sequence of LabelledCell
        Of a field, whose result is carried to its own grid by nearest neighbour, the middle of its cube is taken.
    preprocess : PreprocessConfig
    seed : int
        Of the draw of cells and voxels.
    count, voxels : int
        At most so many cells, and voxels of all of them, are looked at.

    Returns
    -------
    DeliveredVoxels
        Voxels that the truth or the mean of the directions calls foreground.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(cells))[:count]
    parts = []
    for number in chosen:
        cell = cells[number]
        labels, opinions = _opinions(model, cube_of(cell, model.section_size, preprocess))
        interpolated = not cell.field and preprocess.interpolation == "linear"
        truth = cell.labels if interpolated else labels
        drawn = rng.integers(truth.size, size=SURPLUS * voxels // len(chosen))
        places = np.stack(np.unravel_index(drawn, truth.shape), axis=-1)
        if interpolated:
            corners, shares = CubeGrid(truth.shape, cell.voxel_size, model.section_size).corners(places)
        else:
            corners, shares = places[:, None], np.ones((len(places), 1), np.float32)
        z, y, x = np.moveaxis(corners, -1, 0)
        said = np.moveaxis(opinions[:, z, y, x], 0, 2)
        found = np.einsum("vkdc,vk->vc", said, shares).argmax(axis=1)
        kept = np.flatnonzero((truth.ravel()[drawn] > 0) | (found > 0))[: voxels // len(chosen)]
        parts.append(DeliveredVoxels(said[kept], shares[kept], truth.ravel()[drawn[kept]]))
    corners = max(part.shares.shape[1] for part in parts)
    return DeliveredVoxels(
        np.concatenate([_to_corners(part.said, corners) for part in parts]),
        np.concatenate([_to_corners(part.shares, corners) for part in parts]),
        np.concatenate([part.truth for part in parts]),
    )


def _to_corners(values: NDArray[np.float32], corners: int) -> NDArray[np.float32]:
    """Values (voxels, k, ...) of fewer corners than others have: those that are lacking count for nothing."""
    return np.pad(values, ((0, 0), (0, corners - values.shape[1]), *((0, 0),) * (values.ndim - 2)))


def _opinions(model: OrganelleModel, cube: Cube) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels of a cube, or of the middle of a larger one, and the probabilities (3, z, y, x, classes) of each direction
    there; where no sections are cut across an axis, another direction speaks for it."""
    raw, config = replace(model, temperature=1.0), OrganellesConfig(directions=3)
    middle = tuple(_middle(edge, model.section_size) for edge in cube.labels.shape)
    image, labels = np.ascontiguousarray(cube.image[middle]), cube.labels[middle]
    opinions = np.zeros((3, *labels.shape, len(model.taxonomy)), dtype=np.float32)
    for axis, start, stop, probabilities in section_probabilities(image, raw, config):
        if probabilities is not None:
            np.moveaxis(opinions[axis], axis, 0)[start:stop] = probabilities
    axes = axes_of(image, raw, config)
    opinions[[axis for axis in range(3) if axis not in axes]] = opinions[axes[0]]
    return labels, opinions


def _middle(edge: int, size: int) -> slice:
    start = max(edge - size, 0) // 2
    return slice(start, start + min(edge, size))
