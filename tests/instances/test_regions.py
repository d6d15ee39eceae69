"""Boxes, volumes, centroids and necks of cells."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.instances.blocks import blocks
from cmseg_core.instances.regions import (
    CellRegion,
    CellSums,
    Neck,
    crop_box,
    describe_cells,
    describe_sums,
    find_neck,
    sum_cells,
)
from cmseg_core.schema import VoxelSize

VOXEL = VoxelSize(z=40, y=20, x=20)


def ball(shape, voxel_size, centre_nm, radius_nm):
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    squares = [((a + 0.5) * e - c) ** 2 for a, e, c in zip(axes, voxel_size.zyx, centre_nm, strict=True)]
    return sum(squares) <= radius_nm**2


def test_describes_a_ball_and_a_cut_one():
    shape = (40, 80, 160)
    labels = np.zeros(shape, np.uint32)
    labels[ball(shape, VOXEL, (800, 800, 700), 600)] = 1
    labels[ball(shape, VOXEL, (800, 800, 3000), 600)] = 4
    whole, cut = describe_cells(labels, VOXEL)
    assert (whole.cell_id, cut.cell_id) == (1, 4)
    assert whole.volume_um3 == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)
    assert whole.centroid_nm == pytest.approx((800, 800, 700), abs=1)
    assert whole.box == ((5, 35), (10, 70), (5, 65))
    assert not whole.touches_border
    assert cut.touches_border
    assert cut.box[2] == (120, 160)
    assert whole.neck_ratio == 1.0


def test_empty_volume_has_no_cells():
    assert describe_cells(np.zeros((4, 5, 6), np.uint32), VOXEL) == ()


@pytest.mark.parametrize("voxel_size", [VOXEL, VoxelSize(z=20, y=20, x=20)])
@pytest.mark.parametrize("half_distance", [400, 500])
def test_neck_ratio_is_the_width_of_the_neck_over_the_lobe(voxel_size, half_distance):
    extent = (1300, 1300, 2400)
    shape = tuple(int(n / e) for n, e in zip(extent, voxel_size.zyx, strict=True))
    lobes = [ball(shape, voxel_size, (650, 650, 1200 + side * half_distance), 600) for side in (-1, 1)]
    expected = np.sqrt(600**2 - half_distance**2) / 600
    assert find_neck(lobes[0] | lobes[1], voxel_size).ratio == pytest.approx(expected, abs=0.06)


def test_an_ellipsoid_has_no_neck():
    z, y, x = np.ogrid[-30:31, -40:41, -70:71]
    assert find_neck((z / 25) ** 2 + (y / 35) ** 2 + (x / 65) ** 2 <= 1, VoxelSize(z=20, y=20, x=20)).ratio > 0.97


def test_a_wart_is_no_lobe():
    shape = (60, 60, 90)
    voxel_size = VoxelSize(z=20, y=20, x=20)
    cell = ball(shape, voxel_size, (600, 600, 600), 500) | ball(shape, voxel_size, (600, 600, 1250), 180)
    assert find_neck(cell, voxel_size) == Neck(1.0, (1.0,))


def test_crop_box_adds_a_physical_margin_inside_the_field():
    region = CellRegion(cell_id=1, box=((5, 10), (2, 30), (50, 79)), touches_border=False, volume_um3=1.0,
                        centroid_nm=(0.0, 0.0, 0.0), neck_ratio=1.0, lobes_um3=(1.0,))  # fmt: skip
    assert crop_box(region, (40, 80, 80), VOXEL, 100) == (slice(2, 13), slice(0, 35), slice(45, 80))
    assert crop_box(region, (40, 80, 80), VOXEL, 0) == (slice(5, 10), slice(2, 30), slice(50, 79))


def test_a_dumbbell_is_parted_at_its_neck():
    voxel_size = VoxelSize(z=20, y=20, x=20)
    shape = (70, 70, 130)
    labels = (ball(shape, voxel_size, (700, 700, 700), 600) | ball(shape, voxel_size, (700, 700, 1700), 450)) * 1
    (cell,) = describe_cells(labels.astype(np.uint8), voxel_size)
    assert len(cell.lobes_um3) == 2
    assert sum(cell.lobes_um3) == pytest.approx(cell.volume_um3)
    assert cell.lobes_um3 == pytest.approx([4 / 3 * np.pi * r**3 for r in (0.6, 0.45)], rel=0.06)


@pytest.mark.parametrize("edge", [7, 16])
def test_cells_are_described_from_blocks_as_from_the_whole(edge):
    rng = np.random.default_rng(2)
    labels = (rng.integers(0, 5, (20, 24, 30)) * 3).astype(np.uint32)
    parts = [sum_cells(labels[block.box], block.start) for block in blocks(labels.shape, edge)]
    read = []
    described = describe_sums(
        CellSums.together(parts), lambda box: read.append(box) or labels[box], labels.shape, VOXEL
    )
    assert described == describe_cells(labels, VOXEL)
    assert [cell.cell_id for cell in described] == [3, 6, 9, 12]
    assert [cell.volume_um3 for cell in described] == [
        pytest.approx((labels == i).sum() * VOXEL.volume_um3) for i in (3, 6, 9, 12)
    ]
    assert len(read) == 4
