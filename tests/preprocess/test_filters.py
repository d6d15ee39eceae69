import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from cmseg_core.preprocess.bilateral import bilateral_exact, bilateral_sections, full_kernel, sampled_kernel
from cmseg_core.preprocess.median import (
    MERGE_27,
    SORT_9,
    median_3x3x3,
    median_sections,
    median_slab,
    mode_3x3x3,
)

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=9)


def scipy_median(volume):
    return ndimage.median_filter(volume, size=3, mode="nearest")


def mode_oracle(labels):
    padded = np.pad(labels, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3)).reshape(*labels.shape, 27)
    out = np.empty_like(labels)
    for index in np.ndindex(labels.shape):
        counts = np.bincount(windows[index], minlength=256)
        own = labels[index]
        out[index] = own if counts[own] == counts.max() else counts.argmax()
    return out


def test_networks_by_the_zero_one_principle():
    for bits in itertools.product((0, 1), repeat=9):
        values = list(bits)
        for a, b in SORT_9:
            values[a], values[b] = min(values[a], values[b]), max(values[a], values[b])
        assert values == sorted(bits)
    for ones in itertools.product(range(10), repeat=3):
        values = [int(i >= 9 - n) for n in ones for i in range(9)]
        for a, b in MERGE_27:
            values[a], values[b] = min(values[a], values[b]), max(values[a], values[b])
        assert values[13] == (sum(ones) >= 14)


@settings(max_examples=60, deadline=None)
@given(volume=st.sampled_from([np.uint8, np.uint16, np.int16]).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)))
def test_median_equals_scipy(volume):
    np.testing.assert_array_equal(median_3x3x3(volume), scipy_median(volume))


@pytest.mark.parametrize("shape", [(3, 5, 1022), (2, 4, 1023), (4, 37, 300), (1, 1, 1), (5, 1, 2000)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_median_of_long_rows_equals_scipy(shape, dtype):
    volume = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    result = median_3x3x3(volume)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, scipy_median(volume))


def test_median_of_a_view_that_is_not_contiguous():
    volume = np.random.default_rng(0).integers(0, 256, (9, 10, 11), dtype=np.uint8).transpose(2, 0, 1)[::2]
    np.testing.assert_array_equal(median_3x3x3(volume), scipy_median(volume))


@settings(max_examples=30, deadline=None)
@given(volume=hnp.arrays(np.uint8, SHAPES), step=st.integers(1, 5))
def test_median_by_slabs_equals_the_whole(volume, step):
    depth = len(volume)
    slabs = [
        median_slab(lambda a, b: volume[a:b], start, min(start + step, depth), depth) for start in range(0, depth, step)
    ]
    np.testing.assert_array_equal(np.concatenate(slabs), scipy_median(volume))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("size", [3, 5])
def test_median_of_sections_equals_scipy(dtype, size):
    volume = np.random.default_rng(0).integers(0, 256, (3, 20, 33)).astype(dtype)
    np.testing.assert_array_equal(
        median_sections(volume, size), ndimage.median_filter(volume, size=(1, size, size), mode="nearest")
    )
    with pytest.raises(ValueError, match="3 or 5"):
        median_sections(volume, 7)


@settings(max_examples=60, deadline=None)
@given(labels=hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 1, 2, 5, 254, 255])))
def test_mode_equals_the_count_of_votes(labels):
    np.testing.assert_array_equal(mode_3x3x3(labels), mode_oracle(labels))


def test_mode_keeps_the_own_class_in_a_tie_where_the_median_invents_one():
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[:, :, 1] = 2
    labels[:, :, 2] = 4
    assert mode_3x3x3(labels)[1, 1, 1] == 2
    two = np.repeat(np.array([0, 4], np.uint8), 8).reshape(2, 2, 4)
    assert set(np.unique(mode_3x3x3(two))) <= {0, 4}
    with pytest.raises(ValueError, match="uint8"):
        mode_3x3x3(labels.astype(np.uint16))


def noisy_sections(seed=0):
    rng = np.random.default_rng(seed)
    clean = np.where(ndimage.gaussian_filter(rng.normal(size=(2, 90, 110)), (0, 6, 6)) > 0, 170.0, 80.0)
    return clean, np.clip(clean + rng.normal(0, 15, clean.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0.4, 1.0])
def test_bilateral_is_exact_where_the_taps_cover_the_kernel(sigma):
    _, noisy = noisy_sections()
    difference = np.abs(bilateral_sections(noisy, sigma, 30).astype(int) - bilateral_exact(noisy, sigma, 30))
    assert difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.parametrize(("sigma", "mean"), [(1.5, 1.0), (2.0, 2.0), (3.0, 2.5)])
def test_bilateral_sample_stays_close_to_the_whole_kernel(sigma, mean):
    clean, noisy = noisy_sections()
    exact, sampled = bilateral_exact(noisy, sigma, 40), bilateral_sections(noisy, sigma, 40)
    assert np.abs(sampled.astype(int) - exact).mean() < mean
    before, after = (np.abs(image - clean).mean() for image in (noisy.astype(float), sampled))
    assert after < 0.5 * before


def test_bilateral_keeps_an_edge_and_a_constant():
    step = np.zeros((1, 40, 40), np.uint8)
    step[:, :, 20:] = 250
    np.testing.assert_array_equal(bilateral_sections(step, 2.0, 15), step)
    np.testing.assert_array_equal(bilateral_sections(np.full_like(step, 77), 2.0, 15), 77)


def test_bilateral_switched_off_and_wrong_input():
    _, noisy = noisy_sections()
    np.testing.assert_array_equal(bilateral_sections(noisy, 0, 30), noisy)
    np.testing.assert_array_equal(bilateral_exact(noisy, 0, 30), noisy)
    with pytest.raises(ValueError, match="uint8"):
        bilateral_sections(noisy.astype(np.float32), 1, 30)
    with pytest.raises(ValueError, match="range sigma"):
        bilateral_sections(noisy, 1, 0)


@pytest.mark.parametrize("sigma", [1.5, 3.0, 5.0])
@pytest.mark.parametrize("taps", [8, 16, 32, 48])
def test_sampled_kernel_weighs_as_much_as_the_whole_and_is_spread(sigma, taps):
    offsets, weights = sampled_kernel(sigma, taps)
    everything, all_weights = full_kernel(sigma)
    assert 0.6 * taps <= len(offsets) <= taps
    assert weights.sum() == pytest.approx(all_weights.sum(), rel=1e-5)
    assert len({tuple(o) for o in offsets}) == len(offsets)
    centre = (offsets * weights[:, None]).sum(axis=0) / weights.sum()
    assert np.hypot(*centre) < 0.35 * sigma
    sampled_kernel.cache_clear()
    np.testing.assert_array_equal(sampled_kernel(sigma, taps)[0], offsets)
