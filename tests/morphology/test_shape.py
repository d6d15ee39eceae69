"""Counts, surfaces and waists against shapes of known size."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import marching_cubes, mesh_surface_area

from cmseg_core.morphology.colours import cell_colours
from cmseg_core.morphology.shape import count_objects, crofton_surface_um2, waist_ratio
from cmseg_core.schema import VoxelSize

CUBIC = VoxelSize(z=10, y=10, x=10)
FLAT = VoxelSize(z=30, y=10, x=10)


def ellipsoid(voxel_size, radii_nm, shift_nm=(0.0, 0.0, 0.0)):
    counts = [int(2 * (r + abs(s)) / e) + 8 for r, s, e in zip(radii_nm, shift_nm, voxel_size.zyx, strict=True)]
    axes = np.ogrid[tuple(slice(0, n) for n in counts)]
    return (
        sum(
            (((a - n / 2 + 0.2) * e - s) / r) ** 2
            for a, n, e, r, s in zip(axes, counts, voxel_size.zyx, radii_nm, shift_nm, strict=True)
        )
        <= 1
    )


@pytest.mark.parametrize("voxel_size", [CUBIC, FLAT])
@pytest.mark.parametrize("radius_nm", [100, 250, 500])
def test_surface_of_a_ball(voxel_size, radius_nm):
    ball = ellipsoid(voxel_size, (radius_nm,) * 3)
    assert crofton_surface_um2(ball, voxel_size) == pytest.approx(4 * np.pi * (radius_nm * 1e-3) ** 2, rel=0.03)


def test_surface_of_an_ellipsoid_and_what_marching_cubes_overstates():
    a, b, c = 0.2, 0.3, 0.5
    mask = ellipsoid(CUBIC, (200, 300, 500))
    p = 1.6075  # Thomsen's formula, good to 1.1 %
    ideal = 4 * np.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)
    ours = crofton_surface_um2(mask, CUBIC)
    assert ours == pytest.approx(ideal, rel=0.03)
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.uint8), 0.5, spacing=(0.01,) * 3)
    assert mesh_surface_area(vertices, faces) > 1.05 * ideal


def test_surface_of_a_cut_mask_counts_the_cut():
    cube = np.ones((40, 40, 40), bool)
    assert crofton_surface_um2(cube, CUBIC) == pytest.approx(6 * 0.4**2, rel=0.10)
    assert crofton_surface_um2(np.zeros((3, 3, 3), bool), CUBIC) == 0.0


def test_specks_are_not_counted():
    mask = np.zeros((40, 40, 80), bool)
    assert count_objects(mask, CUBIC) == 0
    mask[5:25, 5:25, 5:25] = True
    mask[5:25, 5:25, 40:60] = True
    mask[35, 35, 35] = True
    mask[30:34, 30:34, 30:34] = True
    assert count_objects(mask, CUBIC) == 2
    # Half of the pieces' size in physical terms decides, not the number of voxels.
    assert count_objects(mask, VoxelSize(z=2, y=2, x=2)) == 0


def test_pieces_that_meet_at_a_corner_are_one():
    mask = np.zeros((30, 30, 30), bool)
    mask[0:15, 0:15, 0:15] = True
    mask[15:30, 15:30, 15:30] = True
    assert count_objects(mask, CUBIC) == 1


def test_small_halves_count_and_crumbs_do_not():
    mask = np.zeros((40, 40, 120), bool)
    mask[:, :, :40] = True
    mask[:20, :20, 50:70] = True
    assert count_objects(mask, CUBIC) == 2
    mask[:20, :20, 50:70] = False
    mask[:12, :12, 50:62] = True
    assert count_objects(mask, CUBIC) == 1


def test_waist():
    assert waist_ratio(ellipsoid(CUBIC, (200, 250, 500)), CUBIC) > 0.95
    lobes = ellipsoid(CUBIC, (200, 200, 200), (0, 0, 150)) | ellipsoid(CUBIC, (200, 200, 200), (0, 0, -150))
    for radius in (30, 80, 120):  # of a few voxels; none may beat against the slices
        assert waist_ratio(ellipsoid(CUBIC, (radius,) * 3), CUBIC) > 0.95
    # Smoothing fills the cusp between the lobes a little.
    assert 1 - (150 / 200) ** 2 < waist_ratio(lobes, CUBIC) < 0.62
    apart = np.zeros((20, 20, 100), bool)
    apart[:, :, :40] = apart[:, :, 60:] = True
    assert waist_ratio(apart, CUBIC) < 0.05
    assert waist_ratio(np.ones((1, 1, 3), bool), CUBIC) == 1.0


def test_colours_are_distinct_and_stable():
    colours = cell_colours(60)
    assert colours.dtype == np.uint8
    apart = np.linalg.norm(colours[:, None].astype(int) - colours[None], axis=-1) + 1e3 * np.eye(60)
    assert apart.min() > 15
    assert apart[np.arange(59), np.arange(1, 60)].min() > 60
    np.testing.assert_array_equal(cell_colours(7), colours[:7])
    assert cell_colours(0).shape == (0, 3)
