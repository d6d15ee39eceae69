"""Cells that were found on one grid, described on another over the same extent."""

from __future__ import annotations

import numpy as np

from cmseg_core.instances.regions import CellRegion
from cmseg_core.preprocess.regrid import source_indices
from cmseg_core.preprocess.resample import Grid


def rescale_regions(regions: tuple[CellRegion, ...], shape: Grid, target: Grid) -> tuple[CellRegion, ...]:
    """Carry the boxes of cells to the grid to which their labels are resampled by nearest neighbour.

    Parameters
    ----------
    regions : tuple of CellRegion
        With boxes on a grid of `shape`.
    shape, target : tuple of int
        Voxels of the two grids, which cover the same extent.

    Returns
    -------
    tuple of CellRegion
        With boxes on a grid of `target`, which hold every voxel of the resampled label; physical figures are kept.
        A cell that no voxel of a much coarser grid falls into is left out.
    """
    axes = [source_indices(n, m) for n, m in zip(shape, target, strict=True)]
    carried = []
    for region in regions:
        spans = [
            (int(np.searchsorted(axis, start, "left")), int(np.searchsorted(axis, stop, "left")))
            for axis, (start, stop) in zip(axes, region.box, strict=True)
        ]
        if all(start < stop for start, stop in spans):
            carried.append(region.model_copy(update={"box": (spans[0], spans[1], spans[2])}))
    return tuple(carried)
