"""Blocks cover a volume, and the partition does not show them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cmseg_core.instances.basins import find_basins
from cmseg_core.instances.blocks import Block, blocks, whole
from cmseg_core.instances.landscape import Landscape, draw_landscape, landscape_halo
from cmseg_core.instances.merging import collect, name_cells
from cmseg_core.instances.seams import check_seams
from cmseg_core.instances.watershed import separate_cells
from cmseg_core.schema import InstancesConfig, VoxelSize

VOXEL = VoxelSize(z=36.46, y=36.37, x=36.52)
CONFIG = InstancesConfig(
    h_nm=30, min_volume_um3=0.005, merge_neck_ratio=0.9, interior_neck_ratio=0.8, marker_distance_fraction=0.1
)
DIAMETER_NM = 700.0
SHAPE = (60, 66, 71)


@pytest.mark.parametrize("edge", [1, 5, 8, 100])
def test_blocks_cover_every_voxel_once(edge):
    seen = np.zeros((9, 5, 8), np.uint8)
    names = set()
    for block in blocks(seen.shape, edge):
        seen[block.box] += 1
        names.add(block.name)
        grown = block.grown((2, 1, 3))
        inner = np.zeros(seen.shape, bool)
        inner[grown.box][block.within(grown)] = True
        assert inner[block.box].all()
        assert inner.sum() == seen[block.box].size
    assert (seen == 1).all()
    assert len(names) == len(blocks(seen.shape, edge))


def crowd() -> tuple[np.ndarray, np.ndarray]:
    """A mask with many touching parts, and an interior map with valleys of its own."""
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 4) > -0.01
    interior = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 4)
    return mask, (4000 * np.maximum(interior, 0)).astype(np.float32)


def in_blocks(mask, interior, edge, climb):
    """The partition from blocks that see no more than their halo of each other."""
    boxes = blocks(SHAPE, edge)
    height, distance = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    for block in boxes:
        seen = block.grown(landscape_halo(VOXEL, CONFIG, DIAMETER_NM))
        inside = None if interior is None else interior[seen.box]
        drawn = draw_landscape(mask[seen.box], VOXEL, CONFIG, cell_diameter_nm=DIAMETER_NM, interior=inside)
        height[block.box], distance[block.box] = (a[block.within(seen)] for a in (drawn.height, drawn.distance))
    found = []
    for block in boxes:
        seen = block.grown((climb, climb, climb))
        found.append(find_basins(Landscape(height[seen.box], distance[seen.box]), mask[seen.box], block, seen))
    peak, left = np.full(SHAPE, -1), np.zeros(SHAPE, bool)
    for block, (labels, table) in zip(boxes, found, strict=True):
        there = labels > 0
        peak[block.box][there], left[block.box][there] = (a[labels[there] - 1] for a in (table.peak, table.left))
    tables = [table for _, table in found]
    basins = collect(tables, lambda voxels: (peak.ravel()[voxels], left.ravel()[voxels]))
    cells = name_cells(basins, SHAPE, VOXEL, CONFIG, cell_diameter_nm=DIAMETER_NM, interior=interior is not None)
    out = np.zeros(SHAPE, np.uint32)
    for block, (labels, _), cell in zip(boxes, found, cells.of_label, strict=True):
        out[block.box] = cell[labels]
    return out, sum(int(table.left.sum()) for table in tables)


@pytest.mark.parametrize("with_interior", [False, True], ids=["distance", "interior"])
@pytest.mark.parametrize(("edge", "climb"), [(16, 2), (16, 20), (33, 8), (64, 30)])
def test_the_partition_does_not_depend_on_the_blocks(edge, climb, with_interior):
    mask, interior = crowd()
    interior = interior if with_interior else None
    expected = separate_cells(mask, VOXEL, CONFIG, cell_diameter_nm=DIAMETER_NM, interior=interior)
    assert expected.max() > 15
    found, gone = in_blocks(mask, interior, edge, climb)
    np.testing.assert_array_equal(found, expected)
    assert (gone > 0) == (climb < 30)
    assert check_seams(found, edge)["seams"] > 0


def test_cells_cut_by_blocks_are_a_bad_seam():
    mask, _ = crowd()
    labels = np.zeros(SHAPE, np.uint32)
    for number, block in enumerate(blocks(SHAPE, 32)):
        labels[block.box] = mask[block.box] * (number + 1)
    with pytest.raises(RuntimeError, match="z = 32"):
        check_seams(labels, 32)
    assert check_seams(mask.astype(np.uint8), 32)["across"] < 0.2
    assert check_seams(labels, 100) == {"seams": 0, "across": 0.0, "beside": 0.0}


def test_nothing_is_a_partition_too():
    empty = np.zeros((4, 5, 6), bool)
    flat = Landscape(empty.astype(np.float32), empty.astype(np.float32))
    labels, table = find_basins(flat, empty)
    assert not labels.any()
    cells = name_cells(collect([table]), (4, 5, 6), VOXEL, CONFIG, cell_diameter_nm=DIAMETER_NM, interior=False)
    assert [c.tolist() for c in cells.of_label] == [[0]]
    assert (cells.count, cells.dropped) == (0, 0)
    assert whole((4, 5, 6)) == Block((0, 0, 0), (4, 5, 6), (4, 5, 6))
