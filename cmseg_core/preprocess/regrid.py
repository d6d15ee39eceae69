"""From the native grid to the coarser working grid and back, a few sections at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from cmseg_core.preprocess.resample import Grid, resize
from cmseg_core.schema import VoxelSize

Read = Callable[[int, int], np.ndarray]
"""Gives the sections from start up to, not including, stop."""
READ_SECTIONS = 64
"""Sections asked for at a time: the depth of a chunk."""


def shrink(read: Read, shape: Grid, target: Grid) -> Iterator[np.ndarray]:
    """Resample a volume to a coarser grid by the mean over the area of each new voxel, so that nothing aliases.

    Parameters
    ----------
    read : callable
        ``read(start, stop)`` gives sections as uint8 (z, y, x); called in order, once for each section.
    shape : tuple of int
        Of the volume.
    target : tuple of int
        Of the result. An axis that grows is interpolated linearly.

    Yields
    ------
    ndarray of uint8, shape `target[1:]`
        Rounded half up.
    """
    sections = _reduced_sections(read, shape, target[1:])
    held: dict[int, np.ndarray] = {}
    seen = 0
    for position in range(target[0]):
        places, weights = _cover(position, shape[0], target[0])
        held = {number: section for number, section in held.items() if number >= places[0]}
        while seen <= places[-1]:
            held[seen] = next(sections)
            seen += 1
        total = sum(held[place] * np.float32(weight) for place, weight in zip(places, weights, strict=True))
        yield np.clip(np.floor(total + np.float32(0.5)), 0, 255).astype(np.uint8)


def nearest_slab(volume: Any, shape: Grid, start: int, stop: int) -> np.ndarray:
    """Sections `start` up to `stop` of what ``resize(volume, shape, "nearest")`` would give.

    Parameters
    ----------
    volume : array of shape (z, y, x)
        Of NumPy, or one whose sections are read by slicing.
    shape : tuple of int
        Of the whole result.
    start, stop : int
        Sections of the result.

    Returns
    -------
    ndarray of shape (stop - start, y, x), of the same type
    """
    rows = source_indices(volume.shape[0], shape[0])[start:stop]
    first = int(rows[0])
    taken = np.asarray(volume[first : int(rows[-1]) + 1])[rows - first]
    return resize(np.ascontiguousarray(taken), (stop - start, *shape[1:]), "nearest")


def source_indices(size: int, target: int) -> np.ndarray:
    """For each of `target` voxels along an axis, the one of `size` voxels that the nearest neighbour takes."""
    return ((2 * np.arange(target) + 1) * size) // (2 * target)


def covering_voxel(shape: Grid, target: Grid, voxel_size: VoxelSize) -> VoxelSize:
    """Voxel size of a grid of `target` voxels over the very extent of `shape` voxels of `voxel_size`."""
    return VoxelSize.from_zyx(n * edge / m for n, m, edge in zip(shape, target, voxel_size.zyx, strict=True))


def _reduced_sections(read: Read, shape: Grid, target: tuple[int, int]) -> Iterator[np.ndarray]:
    """Every section with its final rows and columns, as float32."""
    smaller = target[0] <= shape[1] and target[1] <= shape[2]
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    for start in range(0, shape[0], READ_SECTIONS):
        slab = read(start, min(start + READ_SECTIONS, shape[0]))
        for section in slab:
            reduced = section.astype(np.float32)
            if reduced.shape != target:
                reduced = cv2.resize(reduced, (target[1], target[0]), interpolation=method)
            yield reduced


def _cover(position: int, size: int, target: int) -> tuple[range, list[float]]:
    """Sections that make section `position` of the result, and their weights, which sum to 1."""
    if target > size:
        place = min(max((position + 0.5) * size / target - 0.5, 0.0), size - 1.0)
        low = min(int(place), max(size - 2, 0))
        return range(low, min(low + 2, size)), [1 - (place - low), place - low][: min(2, size)]
    first, last = position * size / target, (position + 1) * size / target
    places = range(int(first), min(size, int(np.ceil(last - 1e-9))))
    weights = [(min(place + 1, last) - max(place, first)) / (last - first) for place in places]
    return places, weights
