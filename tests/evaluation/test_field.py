"""Organelles of a whole field, and of the cells of a stage."""

from __future__ import annotations

import numpy as np

from cmseg_core.evaluation.field import score_field, score_stages
from cmseg_core.schema import C_MEROLAE


def _field() -> tuple[np.ndarray, np.ndarray]:
    cells = np.zeros((100, 20, 40), np.uint16)
    cells[10:90, 4:16, 2:16] = 3
    cells[10:90, 4:16, 20:36] = 5
    organelles = (cells > 0).astype(np.uint8)
    organelles[30:60, 6:10, 4:12] = 2
    organelles[30:60, 6:10, 22:30] = 2
    return cells, organelles


def test_perfect_field_scores_one_and_absent_classes_none() -> None:
    _, truth = _field()
    scores = score_field(truth, truth.copy(), C_MEROLAE)
    assert scores["iou"] == scores["dice"]
    assert scores["iou"]["plastid"] == scores["mean_iou"] == 1 and scores["iou"]["nucleus"] is None


def test_scores_are_those_of_counting_by_hand() -> None:
    _, truth = _field()
    predicted = truth.copy()
    predicted[30:45, 6:10, 4:12] = 1
    scores = score_field(truth, predicted, C_MEROLAE)
    size = 30 * 4 * 8
    assert scores["iou"]["plastid"] == (2 * size - size // 2) / (2 * size)
    cytoplasm = int((truth == 1).sum())
    assert scores["iou"]["cytoplasm"] == cytoplasm / (cytoplasm + size // 2)
    assert scores["mean_iou"] == (scores["iou"]["plastid"] + scores["iou"]["cytoplasm"]) / 2


def test_stage_counts_only_its_own_matched_cells() -> None:
    cells, truth = _field()
    found = np.where(cells == 3, 7, np.where(cells == 5, 2, 0)).astype(np.uint32)
    predicted = truth.copy()
    predicted[(cells == 5) & (truth == 2)] = 1
    per_stage = score_stages(truth, predicted, cells, found, {3: 1, 5: 4}, C_MEROLAE)
    assert per_stage["1"]["plastid"] == 1 and per_stage["4"]["plastid"] == 0
    missed = np.where(cells == 3, 7, 0).astype(np.uint32)
    assert set(score_stages(truth, predicted, cells, missed, {3: 1, 5: 4}, C_MEROLAE)) == {"1"}
