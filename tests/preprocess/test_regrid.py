"""Between the native and the working grid: streamed results equal those of the whole volume."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.preprocess.regrid import covering_voxel, nearest_slab, shrink
from cmseg_core.preprocess.resample import resize
from cmseg_core.schema import VoxelSize


def exact_shrink(volume: np.ndarray, target: tuple[int, int, int]) -> np.ndarray:
    """Mean over the area of each new voxel, by one matrix an axis."""
    out = volume.astype(float)
    for axis, m in enumerate(target):
        n = volume.shape[axis]
        edges = np.arange(n + 1)
        weights = np.zeros((m, n))
        for i in range(m):
            low, high = i * n / m, (i + 1) * n / m
            weights[i] = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * m / n
        out = np.moveaxis(np.tensordot(weights, out, (1, axis)), 0, axis)
    return out


@pytest.mark.parametrize("target", [(10, 8, 6), (40, 24, 30), (13, 11, 7), (1, 1, 1), (39, 23, 29)])
def test_shrink_is_the_mean_over_the_area(target: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (40, 24, 30), np.uint8)
    small = np.stack(list(shrink(lambda a, b: volume[a:b], volume.shape, target)))
    assert small.dtype == np.uint8 and small.shape == target
    assert np.abs(small - exact_shrink(volume, target)).max() <= 0.51


def test_shrink_reads_every_section_once_and_in_order() -> None:
    volume = np.zeros((150, 4, 4), np.uint8)
    asked: list[int] = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.extend(range(start, stop))
        return volume[start:stop]

    list(shrink(read, volume.shape, (40, 2, 2)))
    assert asked == list(range(150))


def test_stripes_finer_than_the_new_voxel_do_not_alias() -> None:
    volume = np.zeros((30, 30, 30), np.uint8)
    volume[::2] = 200
    assert set(np.unique(list(shrink(lambda a, b: volume[a:b], volume.shape, (10, 10, 10))))) <= {67, 133}


def test_axis_that_grows_is_interpolated_linearly() -> None:
    volume = np.repeat(np.linspace(10, 240, 12).astype(np.uint8)[:, None, None], 6, 1).repeat(6, 2)
    grown = np.stack(list(shrink(lambda a, b: volume[a:b], volume.shape, (30, 6, 6))))
    np.testing.assert_allclose(grown, resize(volume, (30, 6, 6), "linear"), atol=1)


@pytest.mark.parametrize("shape", [(50, 40, 44), (7, 9, 8), (20, 12, 16)])
def test_slabs_of_the_nearest_neighbour_equal_the_whole(shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(1).integers(0, 9, (20, 12, 16), np.uint16)
    whole = resize(volume, shape, "nearest")
    parts = [nearest_slab(volume, shape, a, min(a + 6, shape[0])) for a in range(0, shape[0], 6)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_covering_voxel_keeps_the_extent() -> None:
    size = covering_voxel((100, 90, 80), (33, 30, 7), VoxelSize(z=10, y=5, x=4))
    np.testing.assert_allclose(np.multiply(size.zyx, (33, 30, 7)), (1000, 450, 320))
