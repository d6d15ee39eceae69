"""Touching cells are parted, dividing ones are not, and nothing depends on the run."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed as skimage_watershed

from cmseg_core.errors import InputError
from cmseg_core.instances.basins import find_basins
from cmseg_core.instances.landscape import Landscape, distance_map
from cmseg_core.instances.merging import collect, merge
from cmseg_core.instances.watershed import separate_cells
from cmseg_core.schema import InstancesConfig, VoxelSize

DIAMETER_NM = 1600.0
CONFIG = InstancesConfig()
CUBIC = VoxelSize(z=50, y=50, x=50)
FLAT = VoxelSize(z=100, y=40, x=40)


def ellipsoid(shape, voxel_size, centre_nm, radii_nm):
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    terms = [((a * e - c) / r) ** 2 for a, e, c, r in zip(axes, voxel_size.zyx, centre_nm, radii_nm, strict=True)]
    return sum(terms) <= 1


def shape_for(voxel_size, extent_nm):
    return tuple(int(n / e) + 1 for n, e in zip(extent_nm, voxel_size.zyx, strict=True))


def packed_cells(voxel_size):
    """Eight balls on a lattice, each pressed 60 nm into its neighbours, their truth and a voxel inside each."""
    shape = shape_for(voxel_size, (3300, 3300, 3300))
    truth = np.zeros(shape, np.uint32)
    mask = np.zeros(shape, bool)
    nearest = np.full(shape, np.inf)
    inside = []
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    for number, corner in enumerate(np.ndindex(2, 2, 2), start=1):
        centre = [880 + 1540 * c for c in corner]
        inside.append(tuple(int(c / e) for c, e in zip(centre, voxel_size.zyx, strict=True)))
        mask |= ellipsoid(shape, voxel_size, centre, (800, 800, 800))
        away = sum((a * e - c) ** 2 for a, e, c in zip(axes, voxel_size.zyx, centre, strict=True))
        truth[away < nearest] = number
        nearest = np.minimum(nearest, away)
    return mask, truth * mask, inside


@pytest.mark.parametrize("voxel_size", [CUBIC, FLAT])
def test_packed_cells_are_parted_along_their_contacts(voxel_size):
    mask, truth, inside = packed_cells(voxel_size)
    assert cc3d.connected_components(mask, connectivity=6).max() == 1
    labels = separate_cells(mask, voxel_size, CONFIG, cell_diameter_nm=DIAMETER_NM)
    assert labels.dtype == np.uint32
    assert labels.max() == 8
    truth_of = np.zeros(9, np.uint32)
    truth_of[[labels[voxel] for voxel in inside]] = [truth[voxel] for voxel in inside]
    assert len(set(truth_of[1:])) == 8
    assert (truth_of[labels] == truth)[mask].mean() > 0.99


def test_unequal_and_elongated_cells():
    shape = shape_for(CUBIC, (2000, 2000, 5000))
    large = ellipsoid(shape, CUBIC, (1000, 1000, 1050), (800, 800, 1000))
    small = ellipsoid(shape, CUBIC, (1000, 1000, 2500), (450, 450, 480))
    long = ellipsoid(shape, CUBIC, (1000, 1000, 3900), (500, 700, 950))
    labels = separate_cells(large | small | long, CUBIC, CONFIG, cell_diameter_nm=DIAMETER_NM)
    assert labels.max() == 3
    for number, cell in enumerate((large, small, long), start=1):
        assert (labels[cell] == number).mean() > 0.97


def two_lobes(voxel_size, distance_nm, radius_nm=700.0, neck_nm=0.0):
    shape = shape_for(voxel_size, (1700, 1700, 2 * radius_nm + distance_nm + 300))
    first, second = radius_nm + 150, radius_nm + 150 + distance_nm
    mask = ellipsoid(shape, voxel_size, (850, 850, first), (radius_nm,) * 3)
    mask |= ellipsoid(shape, voxel_size, (850, 850, second), (radius_nm,) * 3)
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    away = np.hypot(z * voxel_size.z - 850, y * voxel_size.y - 850)
    return mask | ((away <= neck_nm) & (x * voxel_size.x > first) & (x * voxel_size.x < second))


@pytest.mark.parametrize("voxel_size", [CUBIC, FLAT])
@pytest.mark.parametrize(
    ("distance_nm", "neck_nm", "cells"),
    [(1300, 0, 2), (1400, 300, 2), (1300, 580, 1), (900, 0, 1)],
    ids=["touching", "thin bridge", "thick neck", "dividing"],
)
def test_dividing_pair_stays_one_cell(voxel_size, distance_nm, neck_nm, cells):
    mask = two_lobes(voxel_size, distance_nm, neck_nm=neck_nm)
    assert separate_cells(mask, voxel_size, CONFIG, cell_diameter_nm=DIAMETER_NM).max() == cells


def test_neck_ratio_setting_decides():
    mask = two_lobes(CUBIC, 1300)
    tolerant = InstancesConfig(merge_neck_ratio=0.2)
    assert separate_cells(mask, CUBIC, tolerant, cell_diameter_nm=DIAMETER_NM).max() == 1


def test_small_alike_parts_are_daughters_and_large_ones_are_not():
    """The same neck joins two halves of a cell, and does not join two cells."""
    shape = shape_for(CUBIC, (2000, 3600, 4200))
    mask = np.zeros(shape, bool)
    for x in (900, 900 + 1.7 * 800):
        mask |= ellipsoid(shape, CUBIC, (1000, 1000, x), (800, 800, 800))
    for x in (900, 900 + 1.7 * 500):
        mask |= ellipsoid(shape, CUBIC, (1000, 2800, x), (500, 500, 500))
    labels = separate_cells(mask, CUBIC, CONFIG, cell_diameter_nm=DIAMETER_NM)
    assert labels.max() == 3
    assert labels[20, 56, 18] == labels[20, 56, 34] > 0
    apart = InstancesConfig(daughter_neck_ratio=1)
    assert separate_cells(mask, CUBIC, apart, cell_diameter_nm=DIAMETER_NM).max() == 4


def test_near_markers_are_one():
    mask = two_lobes(CUBIC, 1300)
    assert separate_cells(mask, CUBIC, CONFIG, cell_diameter_nm=1300 / 0.19).max() == 1


def test_interior_map_parts_what_distance_cannot():
    shape = (24, 24, 64)
    mask = np.zeros(shape, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    assert separate_cells(mask, CUBIC, CONFIG, cell_diameter_nm=DIAMETER_NM).max() == 1
    interior = np.broadcast_to(np.abs(np.sin(np.arange(64) / 63 * 2 * np.pi)) * 500, shape).astype(np.float32)
    labels = separate_cells(mask, CUBIC, CONFIG, cell_diameter_nm=DIAMETER_NM, interior=interior)
    assert labels.max() == 2
    assert set(np.unique(labels[:, :, 2:31])) == {0, 1}
    assert set(np.unique(labels[:, :, 33:62])) == {0, 2}


def test_empty_and_full_mask():
    empty = np.zeros((10, 12, 14), bool)
    assert not separate_cells(empty, CUBIC, CONFIG, cell_diameter_nm=DIAMETER_NM).any()
    full = separate_cells(~empty, CUBIC, CONFIG, cell_diameter_nm=DIAMETER_NM)
    assert (full == 1).all()


def test_dust_is_dropped_and_the_cell_kept():
    rng = np.random.default_rng(0)
    shape = (64, 96, 96)
    cell = ellipsoid(shape, CUBIC, (1600, 2400, 2400), (800, 800, 800))
    dust = np.zeros(shape, bool)
    sites = np.stack(np.unravel_index(rng.choice(8 * 24 * 24, 2000, replace=False), (8, 24, 24)), axis=1)
    dust[tuple((sites * (8, 4, 4) + 1).T)] = True
    dust &= ~ndimage.binary_dilation(cell, iterations=2)
    labels = separate_cells(cell | dust, CUBIC, CONFIG, cell_diameter_nm=DIAMETER_NM)
    np.testing.assert_array_equal(labels > 0, cell)
    assert labels.max() == 1
    all_kept = separate_cells(cell | dust, CUBIC, InstancesConfig(min_volume_um3=0), cell_diameter_nm=DIAMETER_NM)
    np.testing.assert_array_equal(all_kept > 0, cell | dust)
    assert all_kept.max() == 1 + cc3d.connected_components(dust, connectivity=6).max()


def test_every_label_is_one_piece_in_the_order_of_centroids():
    rng = np.random.default_rng(3)
    mask = ndimage.gaussian_filter(rng.standard_normal((60, 60, 60)), 3) > 0
    config = InstancesConfig(h_nm=10, min_volume_um3=0.01, merge_neck_ratio=0.9, marker_distance_fraction=0)
    labels = separate_cells(mask, CUBIC, config, cell_diameter_nm=400)
    count = int(labels.max())
    assert count > 20
    assert cc3d.connected_components(labels, connectivity=6).max() == count
    centroids = ndimage.center_of_mass(labels > 0, labels, range(1, count + 1))
    assert centroids == sorted(centroids)
    assert np.bincount(labels.ravel())[1:].min() >= 0.01 / CUBIC.volume_um3


def test_result_does_not_depend_on_threads():
    mask, _, _ = packed_cells(FLAT)
    one = separate_cells(mask, FLAT, CONFIG, cell_diameter_nm=DIAMETER_NM, threads=1)
    four = separate_cells(mask, FLAT, CONFIG, cell_diameter_nm=DIAMETER_NM, threads=4)
    np.testing.assert_array_equal(one, four)


@pytest.mark.parametrize("voxel_size", [CUBIC, FLAT])
def test_the_distance_map_is_that_of_scipy_up_to_its_reach(voxel_size):
    mask, _, _ = packed_cells(voxel_size)
    oracle = ndimage.distance_transform_edt(mask, sampling=voxel_size.zyx)
    np.testing.assert_allclose(distance_map(mask, voxel_size, 5000), oracle, rtol=1e-5)
    np.testing.assert_allclose(distance_map(mask, voxel_size, 300), np.minimum(oracle, 300), rtol=1e-5)


def rough_landscape():
    landscape = ndimage.gaussian_filter(np.random.default_rng(5).standard_normal((40, 40, 40)), 2)
    return (1 + 1000 * (landscape - landscape.min()) / np.ptp(landscape)).astype(np.float32)


def test_basins_are_those_of_a_flood_from_the_maxima():
    height = rough_landscape()
    everywhere = np.ones(height.shape, bool)
    labels, table = find_basins(Landscape(height, height), everywhere)
    assert (height.ravel()[table.peak] == table.height).all()
    markers = np.zeros(height.shape, np.int32)
    markers.ravel()[table.peak] = np.arange(1, len(table.peak) + 1)
    oracle = skimage_watershed(-height, markers)
    assert len(table.peak) > 50
    assert (labels == oracle).mean() > 0.85
    assert cc3d.connected_components(labels, connectivity=6).max() == len(table.peak)
    np.testing.assert_array_equal(table.voxels, np.bincount(labels.ravel())[1:])


@pytest.mark.parametrize("depth", [20.0, 50.0, 100.0])
def test_joined_basins_are_the_h_maxima(depth):
    height = rough_landscape()
    basins = collect([find_basins(Landscape(height, height), np.ones(height.shape, bool))[1]])
    groups = merge(basins, height.shape, CUBIC, h_nm=depth, neck_ratio=1.0, nearest_nm=0)
    faces = ndimage.generate_binary_structure(3, 1)
    oracle = ndimage.label(h_maxima(height, depth, faces), faces)[1]
    assert 3 < oracle < len(basins.peak)
    assert len(np.unique(groups)) == oracle


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match="axes"):
        separate_cells(np.zeros((4, 4), bool), CUBIC, CONFIG, cell_diameter_nm=DIAMETER_NM)
    mask = np.ones((4, 4, 4), bool)
    with pytest.raises(InputError, match="shape"):
        separate_cells(mask, CUBIC, CONFIG, cell_diameter_nm=DIAMETER_NM, interior=np.ones((4, 4, 5), np.float32))
    with pytest.raises(InputError, match="finite"):
        broken = np.full(mask.shape, np.nan, np.float32)
        separate_cells(mask, CUBIC, CONFIG, cell_diameter_nm=DIAMETER_NM, interior=broken)
