"""Scores of stages: counts that can be made by hand."""

from __future__ import annotations

import json

import pytest

from cmseg_core.evaluation.stages import confusion_table, described, score_judgements

TRUTH = [1, 1, 1, 2, 2, 5]
FOUND = [(1, 1.0), (1, 0.6), (2, 0.6), (2, 1.0), (None, 0.0), (4, 1.0)]


def test_scores_by_hand():
    scores = score_judgements(TRUTH, FOUND)
    assert scores["accuracy"] == 0.5
    assert scores["recall"] == {"1": pytest.approx(2 / 3), "2": 0.5, "5": 0.0}
    assert scores["mean_recall"] == pytest.approx((2 / 3 + 0.5) / 3)
    none = dict.fromkeys(("1", "2", "3", "4", "5", "none"), 0)
    assert scores["confusion"] == {
        "1": none | {"1": 2, "2": 1},
        "2": none | {"2": 1, "none": 1},
        "5": none | {"4": 1},
    }
    # Of three that were wholly sure two are right, of two that were sure by 0.6 one; the last claimed nothing.
    assert scores["calibration_error"] == pytest.approx((3 * (1 - 2 / 3) + 2 * 0.1) / 6)
    low, high = scores["interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert json.loads(json.dumps(scores, allow_nan=False))["accuracy"] == 0.5


def test_all_right():
    scores = score_judgements([3, 4], [(3, 0.9), (4, 0.9)])
    assert (scores["accuracy"], scores["mean_recall"], scores["interval"]) == (1, 1, (1, 1))


def test_the_matrix_as_text():
    rows = [line.split() for line in confusion_table(score_judgements(TRUTH, FOUND)).splitlines()]
    assert rows[0] == ["true", "stage", "1", "2", "3", "4", "5", "none", "recall"]
    assert rows[2] == ["1", "2", "1", "0", "0", "0", "0", "0.667"]
    assert rows[3][-2:] == ["1", "0.500"]
    assert "none" not in confusion_table(score_judgements([3], [(3, 0.9)]))
    one = score_judgements(TRUTH, FOUND)
    text = described({**one, "rule": one, "cells": TRUTH})
    assert text.startswith("6 cells")
    assert text.count("accuracy 0.500") == 2
