import numpy as np
import pytest
from scipy.spatial import cKDTree

from cmseg_core.evaluation.surfaces import surface_distance
from cmseg_core.schema import VoxelSize

SIZE = VoxelSize(z=30, y=20, x=10)


def box(z: slice, y: slice, x: slice) -> np.ndarray:
    mask = np.zeros((20, 24, 30), dtype=bool)
    mask[z, y, x] = True
    return mask


def test_equal_masks_lie_on_each_other() -> None:
    mask = box(slice(4, 9), slice(5, 9), slice(3, 20))
    distance = surface_distance(mask, mask, SIZE)
    assert distance is not None
    assert (distance.hd95_nm, distance.assd_nm) == (0, 0)


def test_the_surface_of_a_section_is_its_outline() -> None:
    wide = np.zeros((1, 24, 30), dtype=bool)
    wide[0, 4:20, 5:25] = True
    narrow = wide & (np.arange(30) < 22)
    distance = surface_distance(wide, narrow, SIZE)
    assert distance is not None
    # 16 of the 68 outline voxels of the wide one lie 30 nm off, and few more near them; its inside counts for nothing.
    assert distance.hd95_nm == pytest.approx(30)
    assert 5 < distance.assd_nm < 12


def test_a_shift_is_measured_in_nanometres() -> None:
    thin = box(slice(4, 5), slice(2, 20), slice(2, 28))
    distance = surface_distance(thin, np.roll(thin, 3, axis=0), SIZE)
    assert distance is not None
    assert distance.hd95_nm == pytest.approx(90)
    assert distance.assd_nm == pytest.approx(90)


def test_an_absent_structure_has_no_distance() -> None:
    mask = box(slice(4, 9), slice(5, 9), slice(3, 20))
    assert surface_distance(mask, np.zeros_like(mask), SIZE) is None
    assert surface_distance(np.zeros_like(mask), mask, SIZE) is None


def test_distances_are_those_of_a_search_over_all_surface_voxels() -> None:
    rng = np.random.default_rng(0)
    one = box(slice(3, 12), slice(4, 15), slice(5, 20)) & (rng.random((20, 24, 30)) < 0.9)
    two = box(slice(5, 14), slice(3, 13), slice(8, 25)) & (rng.random((20, 24, 30)) < 0.9)

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = padded.copy()
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)
        return np.argwhere(mask & ~inner[1:-1, 1:-1, 1:-1]) * np.array(SIZE.zyx)

    a, b = surface(one), surface(two)
    forth, back = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
    distance = surface_distance(one, two, SIZE)
    assert distance is not None
    assert distance.hd95_nm == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)), rel=1e-5)
    assert distance.assd_nm == pytest.approx(np.concatenate([forth, back]).mean(), rel=1e-5)
