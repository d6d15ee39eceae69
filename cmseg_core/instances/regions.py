"""Where each cell lies and how it is shaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cc3d
import edt
import numpy as np
from numba import njit

from cmseg_core.instances.basins import find_basins
from cmseg_core.instances.landscape import Landscape, smooth
from cmseg_core.instances.merging import Basins, collect
from cmseg_core.schema import Frozen, VoxelSize

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

_NECK_GRID_VOXELS = 64
"""Longest edge of the grid on which a neck is measured: a few per cent of a lobe, and quick."""
_FAR = np.iinfo(np.int64).max
_LEAST_LOBE = 0.5
"""A bump whose half width is below this fraction of the cell's is no lobe."""


class CellRegion(Frozen):
    """One cell of a label volume.

    Attributes
    ----------
    cell_id : int
    box : tuple of (start, stop)
        Half-open voxel ranges along z, y, x.
    touches_border : bool
        Whether the box reaches any of the six faces of the field, so that the cell may be cut.
    volume_um3 : float
    centroid_nm : tuple of float
        ZYX; voxel ``i`` is centred at ``(i + 0.5) * voxel_size``.
    neck_ratio : float
        How constricted the cell is. Take the distance map of the cell: every peak that is at least half as high as the
        highest is a lobe. The ratio is the least, over all lobes but the highest, of the height of the best pass from
        the lobe to a higher one over the height of the lobe; 1 where there is one lobe. A convex cell has 1, a
        dumbbell the width of its neck over the width of its lesser lobe.
    lobes_um3 : tuple of float
        Volumes on the two sides of that neck, the larger first: what the two cells would measure, were a pair in
        division counted as two. One volume where there is no neck.
    """

    cell_id: int
    box: Box
    touches_border: bool
    volume_um3: float
    centroid_nm: tuple[float, float, float]
    neck_ratio: float
    lobes_um3: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class CellSums:
    """What the voxels of cells add up to, in a volume or in one block of it.

    Attributes
    ----------
    cell_id : ndarray of int64, shape (n,)
        Rising.
    voxels : ndarray of int64, shape (n,)
    moment : ndarray of int64, shape (n, 3)
        Sums of the coordinates z, y, x of the voxels in the volume.
    low, high : ndarray of int64, shape (n, 3)
        Half-open ranges of those coordinates.
    """

    cell_id: np.ndarray
    voxels: np.ndarray
    moment: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def together(cls, parts: Sequence[CellSums]) -> CellSums:
        """Of all blocks of a volume."""
        cell_id, row = np.unique(np.concatenate([part.cell_id for part in parts]), return_inverse=True)
        n = len(cell_id)
        total = cls(cell_id, np.zeros(n, np.int64), np.zeros((n, 3), np.int64), np.full((n, 3), _FAR),
                    np.zeros((n, 3), np.int64))  # fmt: skip
        for name, gather in (("voxels", np.add), ("moment", np.add), ("low", np.minimum), ("high", np.maximum)):
            gather.at(getattr(total, name), row, np.concatenate([getattr(part, name) for part in parts]))
        return total


def sum_cells(labels: np.ndarray, start: tuple[int, int, int] = (0, 0, 0)) -> CellSums:
    """Add up the voxels of every cell of a block that begins at `start`.

    Parameters
    ----------
    labels : ndarray of unsigned integers, shape (z, y, x)
        0 outside; ids need not be consecutive, but large gaps cost memory.
    start : tuple of int

    Returns
    -------
    CellSums
    """
    voxels, moment, low, high = _sums(labels, int(labels.max(initial=0)) + 1, np.array(start))
    there = np.flatnonzero(voxels)
    return CellSums(there, voxels[there], moment[there], low[there], high[there])


@njit(cache=True)
def _sums(labels, count, start):
    voxels = np.zeros(count, np.int64)
    moment = np.zeros((count, 3), np.int64)
    low = np.full((count, 3), _FAR)
    high = np.zeros((count, 3), np.int64)
    place = np.zeros(3, np.int64)
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                cell = labels[z, y, x]
                if cell == 0:
                    continue
                place[0], place[1], place[2] = z + start[0], y + start[1], x + start[2]
                voxels[cell] += 1
                for axis in range(3):
                    moment[cell, axis] += place[axis]
                    low[cell, axis] = min(low[cell, axis], place[axis])
                    high[cell, axis] = max(high[cell, axis], place[axis] + 1)
    return voxels, moment, low, high


def describe_cells(labels: np.ndarray, voxel_size: VoxelSize) -> tuple[CellRegion, ...]:
    """Describe every cell of a label volume.

    Parameters
    ----------
    labels : ndarray of unsigned integers, shape (z, y, x)
        As for :func:`sum_cells`.
    voxel_size : VoxelSize

    Returns
    -------
    tuple of CellRegion
        In the order of their ids; empty for an empty volume.
    """
    return describe_sums(sum_cells(labels), lambda box: labels[box], labels.shape, voxel_size)


def describe_sums(
    sums: CellSums,
    read: Callable[[tuple[slice, slice, slice]], np.ndarray],
    shape: tuple[int, ...],
    voxel_size: VoxelSize,
) -> tuple[CellRegion, ...]:
    """Describe the cells of a label volume of which only boxes are read.

    Parameters
    ----------
    sums : CellSums
        Of the whole volume.
    read : callable
        Gives the labels in a box.
    shape : tuple of int
        Of the volume.
    voxel_size : VoxelSize

    Returns
    -------
    tuple of CellRegion
    """
    return tuple(
        _described(int(cell_id), sums, row, read, shape, voxel_size) for row, cell_id in enumerate(sums.cell_id)
    )


def _described(
    cell_id: int,
    sums: CellSums,
    row: int,
    read: Callable[[tuple[slice, slice, slice]], np.ndarray],
    shape: tuple[int, ...],
    voxel_size: VoxelSize,
) -> CellRegion:
    z, y, x = ((int(a), int(b)) for a, b in zip(sums.low[row], sums.high[row], strict=True))
    box = (z, y, x)
    centre = (sums.moment[row] / sums.voxels[row] + 0.5) * voxel_size.zyx
    volume = float(sums.voxels[row]) * voxel_size.volume_um3
    neck = find_neck(np.asarray(read((slice(*z), slice(*y), slice(*x)))) == cell_id, voxel_size)
    return CellRegion(
        cell_id=cell_id,
        box=box,
        touches_border=any(a == 0 or b == n for (a, b), n in zip(box, shape, strict=True)),
        volume_um3=volume,
        centroid_nm=(float(centre[0]), float(centre[1]), float(centre[2])),
        neck_ratio=neck.ratio,
        lobes_um3=tuple(volume * share for share in neck.shares),
    )


@dataclass(frozen=True)
class Neck:
    """The narrowest constriction of a shape.

    Attributes
    ----------
    ratio : float
        In (0, 1], see :class:`CellRegion`; 1 where there is none.
    shares : tuple of float
        Of the volume on its two sides, the larger first; (1,) where there is none.
    """

    ratio: float
    shares: tuple[float, ...]


def find_neck(shape: np.ndarray, voxel_size: VoxelSize) -> Neck:
    """How constricted a shape is, and how a cut through its narrowest neck would part it.

    Parameters
    ----------
    shape : ndarray of bool, shape (z, y, x)
        The box of one cell or organelle.
    voxel_size : VoxelSize

    Returns
    -------
    Neck
        Of its largest piece where the shape is not connected.
    """
    extent = max(n * edge for n, edge in zip(shape.shape, voxel_size.zyx, strict=True))
    steps = [max(1, int(extent / _NECK_GRID_VOXELS / edge)) for edge in voxel_size.zyx]
    coarse = shape[tuple(slice(step // 2, None, step) for step in steps)]
    spacing = (voxel_size.z * steps[0], voxel_size.y * steps[1], voxel_size.x * steps[2])
    coarse = np.pad(cc3d.largest_k(np.ascontiguousarray(coarse), k=1, connectivity=6) > 0, 1)
    if not coarse.any():
        return Neck(1.0, (1.0,))
    distance = edt.edt(coarse, anisotropy=spacing)
    distance = smooth(distance, 0.05 * float(distance.max()), spacing) * coarse
    return _narrowest(collect([find_basins(Landscape(distance, distance), coarse)[1]]))


def _narrowest(basins: Basins) -> Neck:
    least = _LEAST_LOBE * float(basins.height.max())
    total = int(basins.voxels.sum())
    found = Neck(1.0, (1.0,))
    group, voxels = list(range(len(basins.height))), basins.voxels.tolist()
    for k in np.argsort(-basins.pass_height, kind="stable"):
        sides = (_root(group, int(basins.first[k])), _root(group, int(basins.second[k])))
        lower, higher = sorted(sides, key=lambda i: basins.height[i])
        if lower == higher:
            continue
        ratio = float(basins.pass_height[k] / basins.height[lower])
        if basins.height[lower] >= least and ratio < found.ratio:
            share = voxels[lower] / total
            found = Neck(ratio, (max(share, 1 - share), min(share, 1 - share)))
        group[lower] = higher
        voxels[higher] += voxels[lower]
    return found


def _root(group: list[int], node: int) -> int:
    while group[node] != node:
        node = group[node]
    return node


def crop_box(
    region: CellRegion, shape: tuple[int, int, int], voxel_size: VoxelSize, margin_nm: float
) -> tuple[slice, slice, slice]:
    """The box of a cell with its surroundings, cut at the border of the field.

    Parameters
    ----------
    region : CellRegion
    shape : tuple of int
        Shape of the field.
    voxel_size : VoxelSize
    margin_nm : float
        Width of the surroundings; rounded up to whole voxels.

    Returns
    -------
    tuple of slice
        Along z, y, x.
    """
    spans = []
    for (start, stop), length, edge in zip(region.box, shape, voxel_size.zyx, strict=True):
        margin = int(np.ceil(margin_nm / edge))
        spans.append(slice(max(0, start - margin), min(length, stop + margin)))
    z, y, x = spans
    return z, y, x
