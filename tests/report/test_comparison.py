"""Sections that show every class, and pictures in which truth, prediction and errors can be told apart."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cmseg_core.report.comparison import (
    Comparison,
    choose_sections,
    draw_comparisons,
    draw_confusion,
    encode_png,
)
from cmseg_core.schema import C_MEROLAE, VoxelSize


@pytest.fixture
def pair() -> list[Comparison]:
    rng = np.random.default_rng(0)
    made = []
    for name in ("a/1", "a/2"):
        truth = np.zeros((10, 40, 30), np.uint8)
        truth[2:8, 5:35, 5:25] = 1
        truth[3:6, 10:20, 10:20] = 2
        image = rng.integers(60, 120, truth.shape, dtype=np.uint8)
        made.append(
            Comparison(name, image, truth, np.where(truth == 2, 3, truth).astype(np.uint8), VoxelSize(z=9, y=5, x=5))
        )
    made[1].truth[7, 20:24, 6:12] = 5
    return made


def test_sections_show_every_class_and_every_sample(pair: list[Comparison]) -> None:
    chosen = choose_sections(pair, C_MEROLAE)
    assert (1, 7) in chosen
    shown = {label for number, z in chosen for label in np.unique(pair[number].truth[z])}
    assert shown >= {1, 2, 5}
    assert {number for number, _ in chosen} == {0, 1}
    # One section shows what another has shown already only where a sample would be left out.
    assert len(chosen) <= 3


def test_truth_and_prediction_stand_side_by_side(pair: list[Comparison]) -> None:
    drawn = dict(draw_comparisons(pair, C_MEROLAE))
    assert set(drawn) == {f"{pair[n].name}, section {z}" for n, z in choose_sections(pair, C_MEROLAE)}
    picture = next(picture for title, picture in drawn.items() if title.startswith("a/1"))
    height, width = picture.shape[0], picture.shape[1] // 3
    _, truth, found = (picture[52 : height - 30, place * width : (place + 1) * width].astype(int) for place in range(3))
    changed = np.abs(truth - found).max(axis=-1) > 20
    assert 0.02 < changed.mean() < 0.5
    # Plastid (green) in the truth, mitochondrion (yellow: red and green) in the prediction.
    assert (found[changed][:, 0] - truth[changed][:, 0]).mean() > 20
    again = cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), cv2.IMREAD_COLOR)
    assert again is not None
    assert np.array_equal(again[..., ::-1], picture)


def test_the_confusion_matrix_is_brightest_where_the_share_is_largest() -> None:
    table = np.zeros((6, 6), np.int64)
    table[0, 0] = 1000
    table[1, 1], table[1, 2] = 90, 10
    picture = draw_confusion(table, C_MEROLAE).astype(int)
    square, top = 76, 52
    left = picture.shape[1] - 6 * square - 8

    def corner(row: int, column: int) -> np.ndarray:
        return picture[top + row * square + 3, left + column * square + 3]

    assert corner(0, 0)[1] > corner(1, 1)[1] > 100
    assert corner(1, 2)[0] > corner(1, 0)[0] == 28
    assert (corner(3, 3) == 28).all()  # a class that never occurs has no share
