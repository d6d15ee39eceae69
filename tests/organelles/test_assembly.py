"""The organelles of cells in one field."""

from __future__ import annotations

import numpy as np

from cmseg_core.organelles.assembly import PlacedCell, assemble_slab


def _field() -> tuple[np.ndarray, list[PlacedCell]]:
    cells = np.zeros((10, 8, 8), np.uint16)
    cells[1:9, 1:4] = 1
    cells[1:9, 4:7] = 2
    rng = np.random.default_rng(0)
    boxes = [(slice(0, 10), slice(0, 6), slice(0, 8)), (slice(1, 10), slice(2, 8), slice(0, 8))]
    placed = [
        PlacedCell(i + 1, box, rng.integers(0, 5, tuple(s.stop - s.start for s in box), np.uint8))
        for i, box in enumerate(boxes)
    ]
    return cells, placed


def test_every_voxel_of_a_cell_comes_from_its_own_crop() -> None:
    cells, placed = _field()
    field = assemble_slab(cells, 0, placed)
    for cell in placed:
        own = cells[cell.box] == cell.cell_id
        np.testing.assert_array_equal(field[cell.box][own], cell.labels[own])


def test_voxel_of_no_cell_takes_the_first_class_given() -> None:
    cells, placed = _field()
    field = assemble_slab(cells, 0, placed)
    first = np.zeros_like(field)
    for cell in placed:
        first[cell.box] = np.where(first[cell.box] == 0, cell.labels, first[cell.box])
    outside = cells == 0
    np.testing.assert_array_equal(field[outside], first[outside])


def test_slabs_equal_the_whole_field() -> None:
    cells, placed = _field()
    parts = [assemble_slab(cells[a : a + 3], a, placed) for a in range(0, 10, 3)]
    np.testing.assert_array_equal(np.concatenate(parts), assemble_slab(cells, 0, placed))
