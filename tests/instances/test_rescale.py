"""Boxes of cells follow their labels to another grid."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.instances.regions import describe_cells
from cmseg_core.instances.rescale import rescale_regions
from cmseg_core.preprocess.resample import resize
from cmseg_core.schema import VoxelSize


@pytest.mark.parametrize("target", [(60, 47, 81), (30, 30, 30), (17, 60, 21)])
def test_boxes_hold_the_resampled_cells(target: tuple[int, int, int]) -> None:
    labels = np.zeros((30, 30, 30), np.uint32)
    labels[2:12, 3:20, 5:9] = 1
    labels[15:30, 10:28, 12:29] = 2
    regions = describe_cells(labels, VoxelSize(z=36, y=36, x=36))
    carried = rescale_regions(regions, labels.shape, target)
    resampled = resize(labels, target, "nearest")
    for before, region in zip(regions, carried, strict=True):
        where = np.argwhere(resampled == region.cell_id)
        assert region.box == tuple((int(a), int(b) + 1) for a, b in zip(where.min(0), where.max(0), strict=True))
        assert region.volume_um3 == before.volume_um3 and region.centroid_nm == before.centroid_nm


def test_cell_between_the_voxels_of_a_coarse_grid_is_left_out() -> None:
    labels = np.zeros((40, 40, 40), np.uint32)
    labels[1, 1, 1] = 1
    labels[10:30, 10:30, 10:30] = 2
    carried = rescale_regions(describe_cells(labels, VoxelSize(z=10, y=10, x=10)), labels.shape, (4, 4, 4))
    assert [region.cell_id for region in carried] == [2]
