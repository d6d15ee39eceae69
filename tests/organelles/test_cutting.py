"""Cells cut out of a labelled field."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.organelles.cutting import cut_cells
from cmseg_core.schema import VoxelSize

VOXEL = VoxelSize(z=40, y=40, x=40)


@pytest.fixture
def field() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cells = np.zeros((40, 80, 80), np.uint16)
    cells[8:28, 8:28, 8:28] = 1
    cells[8:28, 28:48, 8:28] = 2  # touches cell 1
    cells[8:28, 50:70, 50:80] = 3  # at the border, and large enough
    cells[0:4, 0:20, 50:70] = 4  # a slice that the border left over
    cells[30:34, 4:8, 4:8] = 5  # debris
    organelles = np.where(cells > 0, 1, 0).astype(np.uint8)
    organelles[12:16, 12:16, 12:16] = 5
    image = np.random.default_rng(0).integers(0, 255, cells.shape).astype(np.uint8)
    return image, cells, organelles


def test_whole_and_large_cells_are_cut_slices_and_debris_are_not(field) -> None:
    cut = cut_cells(*field, VOXEL, {1: 3}, margin_nm=80, name="f")
    assert [c.name for c in cut] == ["f/1", "f/2", "f/3"]
    assert [c.stage for c in cut] == [3, None, None]


def test_a_crop_holds_the_margin_own_labels_only_and_names_its_neighbours(field) -> None:
    image, cells, organelles = field
    first = cut_cells(image, cells, organelles, VOXEL, margin_nm=80)[0]
    box = (slice(6, 30), slice(6, 30), slice(6, 30))
    assert np.array_equal(first.image, image[box])
    assert np.array_equal(first.labels, np.where(cells[box] == 1, organelles[box], 0))
    assert np.array_equal(first.others, cells[box] == 2)
    assert set(np.unique(first.labels)) == {0, 1, 5}


def test_the_crop_does_not_hold_on_to_the_field(field) -> None:
    first = cut_cells(*field, VOXEL)[0]
    assert not np.shares_memory(first.image, field[0])


def test_a_field_without_cells_gives_none(field) -> None:
    image, cells, organelles = field
    assert cut_cells(image, np.zeros_like(cells), organelles, VOXEL) == []


def test_unequal_shapes_are_bad_input(field) -> None:
    image, cells, organelles = field
    with pytest.raises(InputError, match="shapes"):
        cut_cells(image, cells[1:], organelles, VOXEL)
