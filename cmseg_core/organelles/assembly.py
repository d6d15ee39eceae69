"""The organelles of single cells, put together into one field."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class PlacedCell:
    """Organelles of one cell and where they belong.

    Attributes
    ----------
    cell_id : int
    box : tuple of slice
        Of the crop in the field.
    labels : array-like of uint8
        Class ids in the crop; anything that gives NumPy arrays when sliced.
    """

    cell_id: int
    box: Slices
    labels: Any


def assemble_slab(cells: np.ndarray, start: int, placed: Iterable[PlacedCell]) -> np.ndarray:
    """Sections of the field's organelles.

    Every voxel of a cell takes the class that this cell's own crop gives it. A voxel of no cell takes the first class
    that any crop gives it, in the order of `placed`: an outline may lie a little outside its mask.

    Parameters
    ----------
    cells : ndarray of unsigned integers, shape (z, y, x)
        Cell ids of sections `start` and on.
    start : int
        First section.
    placed : iterable of PlacedCell

    Returns
    -------
    ndarray of uint8, shape of `cells`
    """
    out = np.zeros(cells.shape, np.uint8)
    stop = start + len(cells)
    for cell in placed:
        low, high = max(cell.box[0].start, start), min(cell.box[0].stop, stop)
        if low >= high:
            continue
        place = (slice(low - start, high - start), *cell.box[1:])
        labels = np.asarray(cell.labels[low - cell.box[0].start : high - cell.box[0].start])
        ids, target = cells[place], out[place]
        target[...] = np.where((ids == cell.cell_id) | ((ids == 0) & (target == 0)), labels, target)
    return out
