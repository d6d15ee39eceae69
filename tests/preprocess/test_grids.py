import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cmseg_core.acquisition.source import ArraySections
from cmseg_core.preprocess.intensity import find_window, to_uint8
from cmseg_core.preprocess.resample import CubeGrid, resize, working_shape
from cmseg_core.schema import VoxelSize

SIDES = st.tuples(*[st.integers(1, 14)] * 3)
EDGES = st.tuples(*[st.sampled_from([4.0, 5.0, 7.3, 10.0, 25.0])] * 3)


def random_volume(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def zoom(volume, shape, order):
    factors = [m / n for m, n in zip(shape, volume.shape, strict=True)]
    return ndimage.zoom(volume, factors, order=order, mode="nearest", grid_mode=True)


class TestResize:
    @settings(max_examples=60, deadline=None)
    @given(shape=SIDES, target=SIDES)
    def test_nearest_equals_scipy_but_for_ties(self, shape, target):
        # Where a sample lies on a voxel border, rounding decides: (2 i + 1) n is a multiple of 2 m.
        assume(all(((2 * np.arange(m) + 1) * n % (2 * m) != 0).all() for n, m in zip(shape, target, strict=True)))
        volume = random_volume(shape)
        np.testing.assert_array_equal(resize(volume, target, "nearest"), zoom(volume, target, 0))

    @settings(max_examples=60, deadline=None)
    @given(shape=SIDES, target=SIDES)
    def test_linear_equals_scipy_within_rounding(self, shape, target):
        volume = random_volume(shape)
        difference = np.abs(resize(volume, target, "linear").astype(int) - zoom(volume, target, 1))
        assert difference.max() <= 1
        exact = zoom(volume.astype(np.float64), target, 1)
        np.testing.assert_allclose(resize(volume.astype(np.float32), target, "linear"), exact, atol=1e-3)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32, bool])
    def test_same_shape_changes_nothing_and_keeps_the_type(self, dtype):
        volume = random_volume((3, 4, 5), dtype)
        for interpolation in ("nearest", "linear") if dtype is not bool else ("nearest",):
            result = resize(volume, volume.shape, interpolation)
            assert result.dtype == dtype
            np.testing.assert_array_equal(result, volume)

    def test_negative_samples_round_to_nearest(self):
        volume = np.array([-10, -7], np.int16).reshape(1, 1, 2)
        np.testing.assert_array_equal(resize(volume, (1, 1, 4), "linear").ravel(), [-10, -9, -8, -7])

    def test_tie_goes_to_the_later_voxel(self):
        volume = np.arange(4, dtype=np.uint8).reshape(1, 1, 4)
        np.testing.assert_array_equal(resize(volume, (1, 1, 2), "nearest").ravel(), [1, 3])

    def test_working_shape(self):
        assert working_shape((100, 200, 301), VoxelSize(z=20, y=10, x=10), 40) == (50, 50, 75)
        assert working_shape((1, 1, 1), VoxelSize(z=1, y=1, x=1), 40) == (1, 1, 1)


class TestCube:
    @settings(max_examples=50, deadline=None)
    @given(shape=SIDES, edges=EDGES, side=st.integers(4, 12))
    def test_corners_are_what_is_interpolated(self, shape, edges, side):
        grid = CubeGrid(shape, VoxelSize.from_zyx(edges), side)
        cube = np.random.default_rng(0).random((side,) * 3).astype(np.float32)
        places = np.argwhere(np.ones(shape, bool))
        corners, shares = grid.corners(places)
        blended = (cube[tuple(np.moveaxis(corners, -1, 0))] * shares).sum(axis=1)
        np.testing.assert_allclose(blended.reshape(shape), grid.to_native(cube, "linear"), atol=1e-5)

    @settings(max_examples=150, deadline=None)
    @given(shape=SIDES, edges=EDGES, spare=st.integers(0, 9))
    def test_labels_come_back_where_the_cube_is_fine_enough(self, shape, edges, spare):
        size = VoxelSize.from_zyx(edges)
        extent = max(n * e for n, e in zip(shape, edges, strict=True))
        side = int(np.ceil(extent / min(edges))) + spare
        grid = CubeGrid(shape, size, side)
        assert grid.pixel_nm <= min(edges) * (1 + 1e-12)
        labels = random_volume(shape)
        cube = grid.to_cube(labels, "nearest", 0)
        assert cube.shape == (side,) * 3
        np.testing.assert_array_equal(grid.to_native(cube, "nearest"), labels)

    @pytest.mark.parametrize("shape", [(9, 40, 31), (50, 20, 20), (17, 17, 17)])
    @pytest.mark.parametrize("edges", [(25, 5, 5), (10, 10, 10), (8, 5, 6)])
    def test_centre_of_mass_keeps_its_place(self, shape, edges):
        size, side = VoxelSize.from_zyx(edges), 96
        grid = CubeGrid(shape, size, side)
        volume = np.zeros(shape, np.uint8)
        volume[tuple(slice(n // 4, n // 4 + max(2, n // 3)) for n in shape)] = 200
        native = (np.array(ndimage.center_of_mass(volume)) + 0.5) * edges
        for interpolation in ("nearest", "linear"):
            cube = grid.to_cube(volume, interpolation, 0)
            place = (np.array(ndimage.center_of_mass(cube)) + 0.5 - grid.offset) * grid.pixel_nm
            assert (np.abs(place - native) <= 0.5 * np.array(edges)).all()

    def test_crop_lies_in_the_middle_and_fill_outside(self):
        grid = CubeGrid((4, 8, 8), VoxelSize(z=5, y=5, x=5), 8)
        cube = grid.to_cube(np.full((4, 8, 8), 9, np.uint8), "linear", 100)
        assert grid.offset == (2, 0, 0)
        assert (cube[2:6] == 9).all() and (cube[:2] == 100).all() and (cube[6:] == 100).all()

    @pytest.mark.parametrize("interpolation", ["nearest", "linear"])
    def test_isotropic_crop_of_its_own_side_is_copied(self, interpolation):
        volume = random_volume((7, 9, 12))
        grid = CubeGrid((7, 9, 12), VoxelSize(z=6, y=6, x=6), 12)
        cube = grid.to_cube(volume, interpolation, 0)
        np.testing.assert_array_equal(cube[2:9, 1:10], volume)
        np.testing.assert_array_equal(grid.to_native(cube, interpolation), volume)

    def test_linear_round_trip_of_a_smooth_image(self):
        z, y, x = np.indices((10, 30, 30))
        volume = (100 + 5 * z + y + 2 * x).astype(np.uint8)
        grid = CubeGrid(volume.shape, VoxelSize(z=15, y=5, x=5), 60)
        back = grid.to_native(grid.to_cube(volume, "linear", 0), "linear")
        inner = (slice(1, -1),) * 3
        assert np.abs(back.astype(int) - volume)[inner].max() <= 2

    def test_smaller_cube_still_maps(self):
        volume = random_volume((30, 30, 30))
        grid = CubeGrid((30, 30, 30), VoxelSize(z=5, y=5, x=5), 10)
        assert grid.to_native(grid.to_cube(volume, "nearest", 0), "nearest").shape == volume.shape
        assert grid.pixel_nm == 15

    def test_wrong_shapes(self):
        grid = CubeGrid((4, 8, 8), VoxelSize(z=5, y=5, x=5), 8)
        with pytest.raises(ValueError, match="has shape"):
            grid.to_cube(np.zeros((4, 8, 9), np.uint8), "nearest", 0)
        with pytest.raises(ValueError, match="has shape"):
            grid.to_native(np.zeros((8, 8, 9), np.uint8), "nearest")
        with pytest.raises(ValueError, match="no place"):
            CubeGrid((0, 8, 8), VoxelSize(z=5, y=5, x=5), 8)


class TestWindow:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
    def test_quantiles(self, dtype):
        volume = np.random.default_rng(0).normal(100, 10, (40, 32, 32)).astype(dtype)
        found = find_window(ArraySections(volume), 0.01, 0.99)
        assert found == pytest.approx(np.quantile(volume, [0.01, 0.99]), abs=1.01)

    def test_negative_samples(self):
        volume = np.random.default_rng(0).integers(-500, 500, (9, 32, 32)).astype(np.int16)
        low, high = find_window(ArraySections(volume), 0.0, 1.0)
        assert (low, high) == (volume.min(), volume.max())

    def test_constant_sections_and_odd_samples_do_not_count(self):
        volume = np.random.default_rng(0).uniform(10, 20, (10, 16, 16)).astype(np.float32)
        volume[3] = 0
        volume[5, 0, :2] = np.nan, np.inf
        low, high = find_window(ArraySections(volume), 0.0, 1.0)
        assert 10 <= low < high <= 20

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_constant_stack_has_a_window_all_the_same(self, dtype):
        assert find_window(ArraySections(np.full((3, 4, 4), 7, dtype)), 0.001, 0.999) == (7, 8)

    def test_quantiles_in_order(self):
        with pytest.raises(ValueError, match="not in order"):
            find_window(ArraySections(np.zeros((3, 4, 4), np.uint8)), 0.9, 0.1)

    @settings(max_examples=40, deadline=None)
    @given(
        dtype=st.sampled_from([np.uint8, np.uint16, np.int16, np.float32]),
        low=st.floats(-50, 50),
        width=st.floats(1, 400),
    )
    def test_mapping_equals_its_formula(self, dtype, low, width):
        samples = (
            np.random.default_rng(0).integers(-300 if dtype in (np.int16, np.float32) else 0, 256, 500).astype(dtype)
        )
        expected = np.floor(np.clip((samples.astype(np.float64) - low) * (255.0 / width), 0, 255) + 0.5)
        found = to_uint8(samples, (low, low + width))
        assert found.dtype == np.uint8
        assert np.abs(found - expected).max() <= 1 and np.mean(found != expected) < 0.01

    def test_no_number_becomes_black(self):
        samples = np.array([np.nan, np.inf, -np.inf, 0.5], np.float32)
        np.testing.assert_array_equal(to_uint8(samples, (0, 1)), [0, 255, 0, 128])

    def test_8_bit_stays_and_other_types_need_a_window(self):
        image = random_volume((2, 3, 4))
        assert to_uint8(image, None) is image
        with pytest.raises(ValueError, match="need a window"):
            to_uint8(image.astype(np.uint16), None)
        with pytest.raises(ValueError, match="is empty"):
            to_uint8(image, (5, 5))
