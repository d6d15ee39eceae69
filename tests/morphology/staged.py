"""Cells of known stage, simulated with coarse voxels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cmseg_core.morphology.stage_training import StagedCell
from cmseg_core.organelles.cutting import cut_cells
from cmseg_core.phantom import draw_field
from cmseg_core.schema import VoxelSize

VOXEL = VoxelSize(z=60, y=50, x=50)


@lru_cache
def staged_cells(*seeds: int, each: int = 2) -> tuple[StagedCell, ...]:
    """`each` cells of every stage from every seed, whole and cut."""
    cells = []
    for seed in seeds:
        stages = (1, 2, 3, 4, 5) * each
        field = draw_field(seed, cells=len(stages), voxel_size=VOXEL, stages=stages)
        grey, ids, organelles = field.labels(0, field.shape[0])
        cut = cut_cells(np.zeros(grey.shape, np.uint8), ids, organelles, VOXEL, field.stages, name=str(seed))
        cells += [StagedCell(c.labels, VOXEL, c.stage, c.name) for c in cut if c.stage is not None]
    return tuple(cells)
