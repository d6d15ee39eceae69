"""Scores of a model from what it made of cells, without a model."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from cmseg_core.evaluation.trials import CellRecord, score_cell, summarise
from cmseg_core.schema import OrganelleClass, Stage, Taxonomy, VoxelSize

TAXONOMY = Taxonomy(classes=tuple(OrganelleClass(id=i, name=n) for i, n in enumerate(("outside", "cell", "dot"))))
SIZE = VoxelSize(z=20, y=20, x=20)


@dataclass(frozen=True)
class Found:
    labels: np.ndarray
    confidence: np.ndarray


def truth() -> np.ndarray:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[4:16, 4:16, 4:16] = 1
    labels[8:12, 8:12, 8:12] = 2
    return labels


def found(shift: int, sure: float = 1.0) -> Found:
    """The truth, with its dot moved along x, and one confidence everywhere."""
    labels = truth()
    labels[labels == 2] = 1
    labels[8:12, 8:12, 8 + shift : 12 + shift] = 2
    return Found(labels, np.full(labels.shape, round(255 * sure), np.uint8))


def record(
    shift: int,
    single: tuple[int | None, int | None, int | None],
    stage: Stage | None,
    name: str = "a",
    sure: float = 1.0,
    review_score: float = 0.0,
) -> CellRecord:
    ways = [None if s is None else found(s) for s in single]
    facts = {"name": name, "stage": stage, "review_score": review_score}
    return score_cell(truth(), found(shift), ways, found(shift, sure), TAXONOMY, SIZE, **facts)


def test_perfect_labels_score_one_everywhere() -> None:
    scores = summarise([record(0, (0, 0, 0), 1)], TAXONOMY)
    assert scores["iou"] == scores["dice"] == {"outside": 1, "cell": 1, "dot": 1}
    dot = scores["per_cell"]["dot"]
    assert (dot["hd95_nm"], dot["assd_nm"], dot["volume_ratio"], dot["right_counts"]) == (0, 0, 1, 1)
    assert scores["calibration"]["error_after"] == pytest.approx(0)


def test_each_direction_is_scored_apart() -> None:
    ways = summarise([record(0, (1, 2, 0), 1)], TAXONOMY)["directions"]
    assert ways["one"]["dot"] == ways["z"]["dot"] == pytest.approx(3 / 5)
    assert ways["y"]["dot"] == pytest.approx(2 / 6)
    assert ways["x"]["dot"] == ways["three"]["dot"] == 1


def test_fusing_is_held_against_the_best_direction_of_each_class() -> None:
    won = summarise([record(0, (1, 2, 1), 1)], TAXONOMY)["fusion"]
    assert (won["best"]["dot"], won["lost"]) == ("z", [])
    assert won["gain"]["dot"] == pytest.approx(1 - 3 / 5)
    lost = summarise([record(2, (3, 2, 1), 1)], TAXONOMY)["fusion"]
    assert lost["best"] == {"cell": "x", "dot": "x"}
    assert lost["lost"] == ["cell", "dot"]
    assert lost["gain"]["dot"] == pytest.approx(2 / 6 - 3 / 5)


def test_a_direction_that_was_not_taken_has_no_score() -> None:
    scores = summarise([record(0, (0, None, None), 1)], TAXONOMY)
    assert scores["fusion"] == {"best": {"cell": None, "dot": None}, "gain": {"cell": None, "dot": None}, "lost": []}
    ways = scores["directions"]
    assert ways["one"]["dot"] == ways["three"]["dot"] == 1
    assert ways["y"]["dot"] is ways["x"]["dot"] is None


def test_stages_are_pooled_and_cells_are_kept_apart() -> None:
    records = [record(0, (0, 0, 0), 1, "a"), record(2, (0, 0, 0), 5, "b"), record(0, (0, 0, 0), None, "c")]
    scores = summarise(records, TAXONOMY)
    assert set(scores["per_stage"]) == {"1", "5"}
    assert scores["per_stage"]["5"]["dot"] == pytest.approx(2 / 6)
    assert [cell["iou"]["dot"] for cell in scores["cells"]] == pytest.approx([1, 1 / 3, 1])
    assert scores["iou"]["dot"] == pytest.approx((4 + 2 + 4) / (4 + 6 + 4))
    low, high = scores["intervals"]["dot"]
    assert low < scores["iou"]["dot"] < high
    assert scores["per_cell"]["dot"]["iou_mean"] == pytest.approx(7 / 9)
    assert scores["per_cell"]["dot"]["hd95_nm"] == pytest.approx(40 / 3, rel=0.01)


def test_the_temperature_is_judged_by_what_it_changes() -> None:
    scores = summarise([record(0, (0, 0, 0), 1, sure=0.6)], TAXONOMY)
    assert scores["calibration"]["error_before"] == pytest.approx(0.4, abs=0.01)
    assert scores["calibration"]["error_after"] == pytest.approx(0)


@pytest.mark.parametrize(("rightly", "share"), [(True, 1), (False, 0)])
def test_review_is_judged_by_the_order_of_the_cells(rightly: bool, share: float) -> None:
    shifts = (0, 1, 0, 3, 1)
    records = [record(s, (0, 0, 0), None, review_score=s / 10 if rightly else 1 - s / 10) for s in shifts]
    scores = summarise(records, TAXONOMY)
    assert scores["review"]["worst_fifth_found"] == share
    assert (scores["review"]["aurc"] < scores["review"]["aurc_random"]) == rightly
    risks = [1 - (cell["iou"]["cell"] + cell["iou"]["dot"]) / 2 for cell in scores["cells"]]
    assert scores["review"]["aurc_random"] == pytest.approx(sum(risks) / 5)
    assert scores["cells"][3]["review_score"] == pytest.approx(0.3 if rightly else 0.7)


def test_a_class_that_is_nowhere_has_no_score_and_all_is_json() -> None:
    empty = truth()
    empty[empty == 2] = 1
    way = Found(empty, np.full(empty.shape, 255, np.uint8))
    record = score_cell(empty, way, [way] * 3, way, TAXONOMY, SIZE, name="a", stage=None, review_score=0.0)
    assert record.mean_iou == 1
    scores = summarise([record], TAXONOMY)
    assert scores["iou"]["dot"] is None
    assert scores["intervals"]["dot"] is None
    assert scores["per_cell"]["dot"]["hd95_nm"] is None
    json.dumps(scores, allow_nan=False)
