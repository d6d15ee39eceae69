"""The classical baseline: the same cells however deep the slabs, and what it makes of odd volumes."""

import warnings

import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_otsu

from cmseg_core.foreground.threshold import Threshold, find_threshold, threshold_foreground, threshold_slab

SHAPE = (40, 60, 70)
BALLS = [(12, 20, 20, 11), (27, 40, 48, 12), (0, 45, 15, 9), (39, 12, 58, 10), (6, 59, 69, 9)]
"""Middle and radius; three are cut by a face, the last by a corner."""
DIAMETER = 24
LOST = 19


def field(inside=90, outside=170, shape=SHAPE, balls=BALLS, noise=8):
    """Balls with more texture than the resin round them."""
    z, y, x = np.indices(shape)
    cells = np.zeros(shape, bool)
    for cz, cy, cx, r in balls:
        cells |= (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < r * r
    rng = np.random.default_rng(0)
    grey = np.where(cells, inside, outside) + rng.normal(0, noise, shape) * np.where(cells, 2, 1)
    return np.clip(grey, 0, 255).astype(np.uint8), cells


def reader(volume):
    def read(start, stop):
        assert 0 <= start < stop <= len(volume)
        return volume[start:stop]

    return read


def by_slabs(volume, depth, diameter=DIAMETER):
    read, size = reader(volume), len(volume)
    threshold = find_threshold(read, volume.shape, depth)
    slabs = [
        threshold_slab(read, volume.shape, start, min(start + depth, size), threshold, diameter)
        for start in range(0, size, depth)
    ]
    return threshold, np.concatenate(slabs)


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def whole_volume_method(volume):
    """Level, cells and whether they are bright, by SciPy on the whole volume at once and without closing holes."""
    smooth = ndimage.gaussian_filter(volume, 1.5, output=np.float32)
    level = threshold_otsu(smooth)
    bright = smooth > level
    rough = np.abs(volume - smooth) + ndimage.gaussian_gradient_magnitude(smooth, 1.0)
    core_dark, core_bright = (ndimage.binary_erosion(phase, iterations=2) for phase in (~bright, bright))
    cells_bright = rough[core_bright].mean() > rough[core_dark].mean()
    return level, ndimage.binary_opening(bright if cells_bright else ~bright), cells_bright


POLARITIES = pytest.mark.parametrize(("inside", "outside"), [(90, 170), (170, 90), (115, 135), (135, 115)])


@POLARITIES
def test_the_result_does_not_depend_on_the_depth_of_the_slabs(inside, outside):
    volume, _ = field(inside, outside)
    volume[[LOST, 0, 30, 31, 32, 33]] = 0
    threshold, cells = by_slabs(volume, len(volume))
    assert 0.05 < (cells > 0).mean() < 0.95
    for depth in (1, 7, 16, 64):
        same_threshold, same_cells = by_slabs(volume, depth)
        assert same_threshold == threshold
        np.testing.assert_array_equal(same_cells, cells)
    np.testing.assert_array_equal(threshold_foreground(volume, DIAMETER), cells)


def test_the_result_does_not_depend_on_the_depth_of_the_slabs_where_every_grey_level_is_near_the_threshold():
    volume = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    threshold, cells = by_slabs(volume, len(volume), diameter=1)
    assert 0.05 < (cells > 0).mean() < 0.95
    for depth in (1, 7, 16, 64):
        same_threshold, same_cells = by_slabs(volume, depth, diameter=1)
        assert same_threshold == threshold
        np.testing.assert_array_equal(same_cells, cells)


def test_which_phase_is_rougher_does_not_depend_on_the_depth_of_the_slabs():
    rng = np.random.default_rng(0)
    # Nothing tells the phases apart but chance: the least error in the sums would turn some of the answers.
    volumes = [np.clip(rng.normal(128, 40, (24, 16, 16)), 0, 255).astype(np.uint8) for _ in range(30)]
    answers = [[find_threshold(reader(v), v.shape, depth) for v in volumes] for depth in (24, 7, 3, 1)]
    assert {threshold.bright for threshold in answers[0]} == {False, True}
    assert all(answer == answers[0] for answer in answers)


@POLARITIES
def test_it_is_the_method_for_a_whole_volume(inside, outside):
    volume, _ = field(inside, outside)
    level, cells, bright = whole_volume_method(volume)
    threshold, found = by_slabs(volume, 16, diameter=1)
    bin_of_the_whole_range = 1.0
    assert threshold.level == pytest.approx(level, abs=bin_of_the_whole_range)
    assert threshold.bright == bright
    assert overlap(found > 0, cells) > 0.98


@POLARITIES
def test_cells_darker_or_brighter_than_the_resin_are_found(inside, outside):
    volume, cells = field(inside, outside)
    assert find_threshold(reader(volume), SHAPE).bright == (inside > outside)
    assert overlap(threshold_foreground(volume, DIAMETER) > 0, cells) > 0.9


@pytest.mark.parametrize(("inside", "outside"), [(90, 170), (170, 90)])
def test_the_border_of_cells_does_not_make_a_thin_background_rough(inside, outside):
    volume, cells = field(inside, outside, balls=[(20, 30, -50, 80), (20, 30, 120, 80)])
    assert cells.mean() > 0.7
    assert find_threshold(reader(volume), SHAPE).bright == (inside > outside)


def test_a_cell_reaches_the_corner_of_the_field():
    volume, _ = field(noise=2, balls=[*BALLS, (0, 0, 0, 8)])
    assert (threshold_foreground(volume, DIAMETER)[:3, :3, :3] == 255).all()


def test_holes_smaller_than_a_cell_are_closed():
    volume, cells = field(noise=2, balls=[(20, 30, 35, 17)])
    hole = np.linalg.norm(np.indices(SHAPE) - np.reshape((20, 30, 35), (3, 1, 1, 1)), axis=0) < 5
    volume[hole] = 170
    open_hole, closed = threshold_foreground(volume, 3) > 0, threshold_foreground(volume, 34) > 0
    assert not open_hole[20, 30, 35]
    assert overlap(open_hole, cells & ~hole) > 0.9
    assert closed[hole].all()
    assert overlap(closed, cells) > 0.95


def test_a_gap_that_reaches_the_border_of_the_field_stays():
    volume, cells = field(noise=2, balls=[(20, 30, 35, 17)])
    volume[:, 26:34, 35:] = 170
    found = threshold_foreground(volume, 10_000) > 0
    assert found[20, 30, 25]
    assert not found[20, 30, 40:].any()


def test_what_is_a_voxel_or_two_thin_is_no_cell():
    volume, _ = field(noise=0)
    threshold = find_threshold(reader(volume), SHAPE)
    clean = threshold_slab(reader(volume), SHAPE, 0, 40, threshold, DIAMETER)
    volume[20:22, 3:6] = 32
    assert (ndimage.gaussian_filter(volume, 1.5, output=np.float32)[20:22, 4] < threshold.level).all()
    np.testing.assert_array_equal(threshold_slab(reader(volume), SHAPE, 0, 40, threshold, DIAMETER), clean)


@pytest.mark.parametrize("grey", [0, 1, 120, 255])
@pytest.mark.parametrize("depth", [1, 9])
def test_a_volume_without_contrast_has_no_cells_and_no_warning(grey, depth):
    volume = np.full((9, 30, 30), grey, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threshold, cells = by_slabs(volume, depth)
        assert threshold == Threshold(None, bright=False)
        assert cells.shape == volume.shape
        assert cells.dtype == np.uint8
        assert not cells.any()
        assert not threshold_foreground(volume, DIAMETER).any()


def test_black_sections_are_no_contrast():
    volume = np.full((12, 30, 30), 200, np.uint8)
    volume[[4, 7, 8, 11]] = 0
    assert find_threshold(reader(volume), volume.shape).level is None


@POLARITIES
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_volume_of_few_sections_has_the_cells_of_its_sections(inside, outside, count):
    volume, cells = field(inside, outside, shape=(count, 60, 70), balls=[(0, 20, 20, 14), (0, 38, 50, 15)], noise=5)
    found = threshold_foreground(volume, DIAMETER) > 0
    assert found.shape == volume.shape
    assert overlap(found, cells) > 0.9
    np.testing.assert_array_equal(by_slabs(volume, 1)[1] > 0, found)


@POLARITIES
@pytest.mark.parametrize("lost", [[LOST], [LOST, LOST + 1], [0], [39]])
def test_a_lost_section_changes_the_others_little_and_is_filled_in(inside, outside, lost):
    volume, cells = field(inside, outside)
    before = threshold_foreground(volume, DIAMETER) > 0
    volume[lost] = 0
    after = threshold_foreground(volume, DIAMETER) > 0
    others = np.delete(np.arange(len(volume)), lost)
    assert (before != after)[others].mean() < 0.005
    assert (before != after)[others].mean(axis=(1, 2)).max() < 0.05
    assert overlap(after[lost], cells[lost]) > 0.65


@POLARITIES
def test_no_cells_inside_of_many_lost_sections(inside, outside):
    volume, cells = field(inside, outside)
    volume[14:34] = 0
    found = threshold_foreground(volume, DIAMETER) > 0
    assert not found[15:33].any()
    kept = np.r_[:14, 34:40]
    assert overlap(found[kept], cells[kept]) > 0.85


def test_only_a_slab_and_its_halo_are_read():
    volume, _ = field()
    spans = []

    def read(start, stop):
        assert 0 <= start < stop <= len(volume)
        spans.append(stop - start)
        return volume[start:stop]

    threshold = find_threshold(read, SHAPE, 8)
    assert len(spans) == 2 * 5
    assert max(spans) == 8 + 2 * 10
    spans.clear()
    threshold_slab(read, SHAPE, 16, 24, threshold, DIAMETER)
    assert spans == [8 + 2 * 8]
