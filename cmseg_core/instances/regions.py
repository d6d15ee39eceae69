"""Where each cell lies and how it is shaped."""

from __future__ import annotations

from typing import Any

import cc3d
import edt
import numpy as np

from cmseg_core.instances.basins import find_markers, find_passes, flood, smooth
from cmseg_core.schema import Frozen, VoxelSize

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

_NECK_GRID_VOXELS = 64
"""Longest edge of the grid on which a neck is measured: a few per cent of a lobe, and quick."""
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
    """

    cell_id: int
    box: Box
    touches_border: bool
    volume_um3: float
    centroid_nm: tuple[float, float, float]
    neck_ratio: float


def describe_cells(labels: np.ndarray, voxel_size: VoxelSize) -> tuple[CellRegion, ...]:
    """Describe every cell of a label volume.

    Parameters
    ----------
    labels : ndarray of unsigned integers, shape (z, y, x)
        0 outside; ids need not be consecutive, but large gaps cost memory.
    voxel_size : VoxelSize

    Returns
    -------
    tuple of CellRegion
        In the order of their ids; empty for an empty volume.
    """
    statistics: Any = cc3d.statistics(labels)
    sizes, centroids, boxes = (statistics[key] for key in ("voxel_counts", "centroids", "bounding_boxes"))
    regions = []
    for cell_id in range(1, len(sizes)):
        if sizes[cell_id] == 0:
            continue
        z, y, x = ((int(s.start), int(s.stop)) for s in boxes[cell_id])
        box = (z, y, x)
        centre = (np.asarray(centroids[cell_id], float) + 0.5) * voxel_size.zyx
        cell = labels[tuple(slice(*span) for span in box)] == cell_id
        regions.append(
            CellRegion(
                cell_id=cell_id,
                box=box,
                touches_border=any(a == 0 or b == n for (a, b), n in zip(box, labels.shape, strict=True)),
                volume_um3=float(sizes[cell_id]) * voxel_size.volume_um3,
                centroid_nm=(float(centre[0]), float(centre[1]), float(centre[2])),
                neck_ratio=neck_ratio(cell, voxel_size),
            )
        )
    return tuple(regions)


def neck_ratio(shape: np.ndarray, voxel_size: VoxelSize) -> float:
    """How constricted a shape is: 1 for a convex one, lower for a dumbbell (see :class:`CellRegion`).

    Parameters
    ----------
    shape : ndarray of bool, shape (z, y, x)
        The box of one cell or organelle.
    voxel_size : VoxelSize

    Returns
    -------
    float
        In (0, 1]; the constriction of its largest piece where the shape is not connected.
    """
    extent = max(n * edge for n, edge in zip(shape.shape, voxel_size.zyx, strict=True))
    steps = [max(1, int(extent / _NECK_GRID_VOXELS / edge)) for edge in voxel_size.zyx]
    coarse = shape[tuple(slice(step // 2, None, step) for step in steps)]
    spacing = (voxel_size.z * steps[0], voxel_size.y * steps[1], voxel_size.x * steps[2])
    coarse = np.pad(cc3d.largest_k(np.ascontiguousarray(coarse), k=1, connectivity=6) > 0, 1)
    if not coarse.any():
        return 1.0
    landscape = edt.edt(coarse, anisotropy=spacing)
    landscape = smooth(landscape, 0.05 * float(landscape.max()), spacing) * coarse
    markers, peaks = find_markers(landscape, (1, 1, 1))
    passes = find_passes(landscape, flood(landscape, markers, coarse))
    least = _LEAST_LOBE * float(peaks.height.max())
    ratio = 1.0
    group = list(range(len(peaks.height)))
    for step in passes:
        lower, higher = sorted((_root(group, step.first), _root(group, step.second)), key=lambda i: peaks.height[i])
        if lower == higher:
            continue
        group[lower] = higher
        if peaks.height[lower] >= least:
            ratio = min(ratio, step.height / float(peaks.height[lower]))
    return ratio


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
