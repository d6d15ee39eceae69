"""Few cells stand for many: every class is among them, and what is looked at is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.organelles.dataset import LabelledCell, field_shape
from cmseg_core.organelles.selection import choose_cells, window_of
from cmseg_core.schema import C_MEROLAE, VoxelSize


def cell(name: str, *classes: int, shape: tuple[int, int, int] = (8, 8, 8), field: bool = False) -> LabelledCell:
    labels = np.zeros(shape, np.uint8)
    for place, label in enumerate(classes):
        labels[place, 1 : 2 + place] = label
    return LabelledCell(labels * 30, labels, VoxelSize(z=20, y=10, x=10), name=name, field=field)


def test_every_class_is_among_the_chosen() -> None:
    cells = [cell(f"common {n}", 1, 2) for n in range(20)]
    cells[13] = cell("rare", 1, 4)
    cells[17] = cell("rarer", 5)
    names = [one.name for one in choose_cells(cells, C_MEROLAE, 5)]
    assert len(names) == 5
    assert {"rare", "rarer"} < set(names)
    assert names == sorted(names, key=[one.name for one in cells].index)
    assert choose_cells(cells, C_MEROLAE, 1)[0].name == "rarer"
    assert choose_cells(cells[:3], C_MEROLAE, 5) == cells[:3]
    assert choose_cells([], C_MEROLAE, 5) == []


@pytest.mark.parametrize("shape", [(40, 50, 60), (1, 300, 400), (12, 200, 30)])
def test_a_window_is_small_enough_and_shows_most_classes(shape: tuple[int, int, int]) -> None:
    field = cell("field", shape=shape, field=True)
    field.labels[:, :40] = 1
    corner = field.labels[-1:, -3:, -3:]
    corner[...] = 3
    corner[0, 0, 0] = 2
    field.image[...] = field.labels * 30
    window = window_of(field, 16**3)
    assert np.prod(field_shape(window)) <= 16**3
    assert {2, 3} <= set(np.unique(window.labels))
    assert np.array_equal(window.image, window.labels * 30)
    if shape[0] == 1:
        assert window.labels.shape == (1, 64, 64)


def test_what_is_small_or_a_cell_stays_whole() -> None:
    small = cell("field", 1, shape=(8, 10, 12), field=True)
    assert window_of(small, 16**3) is small
    large = cell("cell", 1, shape=(80, 90, 70))
    assert window_of(large, 16**3) is large
