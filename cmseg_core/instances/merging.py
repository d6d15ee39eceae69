"""Basins joined to cells, over the whole volume, from the tables of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from cmseg_core.instances.basins import BasinTable, highest
from cmseg_core.preprocess.resample import Grid
from cmseg_core.schema import InstancesConfig, VoxelSize

_DAUGHTERS_ALIKE = 0.65
"""Least volume of the lesser daughter over that of the greater."""
_DAUGHTER_SHARE = 0.74
"""Largest volume of a daughter over that of the usual cell of the field: a division halves a cell that has grown."""

Lookup = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Given flat positions of voxels, gives ``peak`` and ``left`` of the row of each in the table of its own block."""


@dataclass(frozen=True, eq=False)
class Basins:
    """All basins of a volume, with nothing left of its blocks.

    Attributes
    ----------
    peak : ndarray of int64, shape (n,)
        Flat position of each peak, rising.
    height, width : ndarray of float32, shape (n,)
        Of the landscape at the peak, and the largest distance to the outside.
    voxels : ndarray of int64, shape (n,)
    moment : ndarray of int64, shape (n, 3)
        Sums of the coordinates z, y, x of the voxels.
    first, second : ndarray of int64, shape (m,)
        Basins on the two sides of each pass, the lesser first; no two passes have the same.
    pass_height, pass_width : ndarray of float32, shape (m,)
    rows : list of ndarray of int64
        For each table, the basin of each of its rows.
    """

    peak: np.ndarray
    height: np.ndarray
    width: np.ndarray
    voxels: np.ndarray
    moment: np.ndarray
    first: np.ndarray
    second: np.ndarray
    pass_height: np.ndarray
    pass_width: np.ndarray
    rows: list[np.ndarray]


def collect(tables: Sequence[BasinTable], lookup: Lookup | None = None) -> Basins:
    """Put the tables of all blocks of a volume together.

    Parameters
    ----------
    tables : sequence of BasinTable
        One at least.
    lookup : callable, optional
        For ascents that left what their block saw.

    Returns
    -------
    Basins
        But for `rows` the same whatever the blocks were.
    """
    peak, left, height, width, voxels, moment = (
        np.concatenate([getattr(table, name) for table in tables])
        for name in ("peak", "left", "height", "width", "voxels", "moment")
    )
    top = peak.copy()
    if left.any() and lookup is not None:
        gone, where = np.unique(peak[left], return_inverse=True)
        top[left] = _followed(gone, lookup)[where]
    peaks, basin = np.unique(top, return_inverse=True)
    n = len(peaks)
    heights, widths = np.zeros(n, np.float32), np.zeros(n, np.float32)
    heights[basin[~left]] = height[~left]
    np.maximum.at(widths, basin, width)
    counts, moments = np.zeros(n, np.int64), np.zeros((n, 3), np.int64)
    np.add.at(counts, basin, voxels)
    np.add.at(moments, basin, moment)
    rows = np.split(basin, np.cumsum([len(table.peak) for table in tables])[:-1])
    first, second, pass_height, pass_width = _passes_of(tables, rows)
    return Basins(peaks, heights, widths, counts, moments, first, second, pass_height, pass_width, rows)


def _followed(gone: np.ndarray, lookup: Lookup) -> np.ndarray:
    """The peaks to which ascents lead in the end: every step is upward, so that there is one."""
    ends = gone.copy()
    going = np.arange(len(gone))
    while len(going):
        ends[going], left = lookup(ends[going])
        going = going[left]
    return ends


def _passes_of(tables: Sequence[BasinTable], rows: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    one = np.concatenate([row[table.first] for table, row in zip(tables, rows, strict=True)])
    two = np.concatenate([row[table.second] for table, row in zip(tables, rows, strict=True)])
    heights, widths = (np.concatenate([getattr(t, name) for t in tables]) for name in ("pass_height", "pass_width"))
    return _best_passes(one, two, heights, widths)


def _best_passes(one: np.ndarray, two: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """The sides of all passes between different things, each pair once, and the largest of each value."""
    apart = one != two
    one, two = one[apart].astype(np.uint64), two[apart].astype(np.uint64)
    keys = (np.minimum(one, two) << np.uint64(32)) | np.maximum(one, two)
    keys, best = highest(keys, *(value[apart] for value in values))
    return (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64), *best


def merge(
    basins: Basins, shape: Grid, voxel_size: VoxelSize, *, h_nm: float, neck_ratio: float, nearest_nm: float
) -> np.ndarray:
    """Join basins over their passes, the highest first.

    The sides of a pass become one where it is less than `h_nm` below the lower of their highest peaks, above
    `neck_ratio` times that peak, or where the two peaks are nearer than `nearest_nm`.

    Parameters
    ----------
    basins : Basins
    shape : tuple of int
        Of the volume.
    voxel_size : VoxelSize
    h_nm, neck_ratio, nearest_nm : float

    Returns
    -------
    ndarray of int64, shape (n,)
        For each basin the one with the highest peak of those that it was joined with.
    """
    place = np.stack(np.unravel_index(basins.peak, shape), axis=1) * np.array(voxel_size.zyx)
    # Ties by number, so that the order never depends on the run.
    order = np.lexsort((basins.second, basins.first, -basins.pass_height))
    passes = basins.first[order], basins.second[order], basins.pass_height[order]
    return _merge(basins.height, place, *passes, h_nm, neck_ratio, nearest_nm)


@njit(cache=True)
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True)
def _merge(height, place, first, second, pass_height, h, neck_ratio, nearest):
    parent = np.arange(len(height))
    for k in range(len(first)):
        lower, higher = _root(parent, first[k]), _root(parent, second[k])
        if lower == higher:
            continue
        if height[lower] > height[higher] or (height[lower] == height[higher] and lower < higher):
            lower, higher = higher, lower
        peak = height[lower]
        shallow = peak - pass_height[k] < h
        wide = pass_height[k] > neck_ratio * peak
        if shallow or wide or np.sqrt(((place[lower] - place[higher]) ** 2).sum()) < nearest:
            parent[lower] = higher
    for node in range(len(parent)):
        parent[node] = _root(parent, node)
    return parent


@dataclass(frozen=True, eq=False)
class NamedCells:
    """Which basins are which cell.

    Attributes
    ----------
    of_label : list of ndarray of uint32, shape (rows + 1,)
        For each table, the cell of each label of its block; 0 for none.
    count : int
        Cells are numbered from 1 to this in the order of their centroids.
    dropped : int
        Pieces that were too small for a cell.
    """

    of_label: list[np.ndarray]
    count: int
    dropped: int


def name_cells(
    basins: Basins,
    shape: Grid,
    voxel_size: VoxelSize,
    config: InstancesConfig,
    *,
    cell_diameter_nm: float,
    interior: bool,
) -> NamedCells:
    """Join basins to cells, and number those that are large enough.

    Parameters
    ----------
    basins : Basins
    shape : tuple of int
        Of the volume.
    voxel_size : VoxelSize
    config : InstancesConfig
    cell_diameter_nm : float
    interior : bool
        Whether the landscape is that of masks of single cells.

    Returns
    -------
    NamedCells
    """
    neck_ratio = config.interior_neck_ratio if interior else config.merge_neck_ratio
    nearest_nm = config.marker_distance_fraction * cell_diameter_nm
    part = merge(basins, shape, voxel_size, h_nm=config.h_nm, neck_ratio=neck_ratio, nearest_nm=nearest_nm)
    least_voxels = max(1, int(np.ceil(config.min_volume_um3 / voxel_size.volume_um3)))
    if interior:
        daughters = _joined_daughters(
            basins, part, basins.height, basins.pass_height, config.interior_daughter_neck_ratio, least_voxels
        )
    else:
        daughters = _joined_daughters(
            basins, part, basins.width, basins.pass_width, config.daughter_neck_ratio, least_voxels
        )
    cell = daughters[part]
    voxels, moment = np.zeros(len(part), np.int64), np.zeros((len(part), 3), np.int64)
    np.add.at(voxels, cell, basins.voxels)
    np.add.at(moment, cell, basins.moment)
    kept = np.flatnonzero(voxels >= least_voxels)
    centroid = moment[kept] / voxels[kept, None]
    number = np.zeros(len(part), np.uint32)
    number[kept[np.lexsort(centroid.T[::-1])]] = np.arange(1, len(kept) + 1, dtype=np.uint32)
    of_label = [np.concatenate([np.zeros(1, np.uint32), number[cell[rows]]]) for rows in basins.rows]
    return NamedCells(of_label, len(kept), int(np.count_nonzero((voxels > 0) & (voxels < least_voxels))))


def _joined_daughters(
    basins: Basins, part: np.ndarray, lobe: np.ndarray, neck: np.ndarray, neck_ratio: float, least_voxels: int
) -> np.ndarray:
    """Give two daughters that still hang together one number; no part is joined twice.

    `lobe` of the basins and `neck` of the passes are half widths, by the distance map or by the depth in single cells.
    """
    joined = np.arange(len(part))
    volumes, width = np.zeros(len(part), np.int64), np.zeros(len(part), np.float32)
    np.add.at(volumes, part, basins.voxels)
    np.maximum.at(width, part, lobe)
    large = volumes >= least_voxels
    if np.count_nonzero(large) < 2:
        return joined
    usual = float(np.median(volumes[large]))
    first, second, widest = _best_passes(part[basins.first], part[basins.second], neck)
    for k in np.lexsort((second, first, -widest)):
        pair = [first[k], second[k]]
        lesser, greater = sorted(volumes[pair])
        small = greater <= _DAUGHTER_SHARE * usual and lesser >= max(_DAUGHTERS_ALIKE * greater, least_voxels)
        if small and widest[k] > neck_ratio * min(width[pair]):
            joined[second[k]] = first[k]
            volumes[pair] = 0
    return joined
