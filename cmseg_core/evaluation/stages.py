"""Scores of a classifier of the cell-cycle stage: who was taken for what, and how sure it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cmseg_core.evaluation.bootstrap import RESAMPLES, interval
from cmseg_core.evaluation.reliability import LEVELS, Reliability
from cmseg_core.evaluation.tables import format_table
from cmseg_core.morphology.stage import stage_by_rule
from cmseg_core.morphology.stage_classifier import StageClassifier
from cmseg_core.morphology.stage_training import StagedCell
from cmseg_core.schema import STAGES, Stage, Taxonomy

Judgement = tuple[Stage | None, float]
"""A stage, None where there was none to be told, and the confidence in it, 0 to 1."""
UNKNOWN = "none"


def score_classifier(
    classifier: StageClassifier,
    cells: Sequence[StagedCell],
    taxonomy: Taxonomy,
) -> dict[str, Any]:
    """Classify cells of known stage, with the classifier and with the rule beside it.

    Parameters
    ----------
    classifier : StageClassifier
    cells : sequence of StagedCell
        At least one.
    taxonomy : Taxonomy
        Of their labels.

    Returns
    -------
    dict
        JSON values: what :func:`score_judgements` says of the classifier; the same of the rule as ``rule``; and
        ``cells`` with ``name``, ``stage``, ``found``, ``confidence`` and ``rule`` of each.
    """
    judged: list[Judgement] = []
    ruled: list[Judgement] = []
    for cell in cells:
        judged.append(classifier.stage_of(cell.labels, taxonomy, cell.voxel_size))
        ruled.append(stage_by_rule(cell.labels, taxonomy, cell.voxel_size))
    truth: list[Stage] = [cell.stage for cell in cells]
    rows = [
        {"name": cell.name, "stage": cell.stage, "found": found, "confidence": sure, "rule": rule}
        for cell, (found, sure), (rule, _) in zip(cells, judged, ruled, strict=True)
    ]
    return {**score_judgements(truth, judged), "rule": score_judgements(truth, ruled), "cells": rows}


def score_judgements(truth: Sequence[Stage], judged: Sequence[Judgement]) -> dict[str, Any]:
    """Compare stages with the truth.

    Parameters
    ----------
    truth : sequence of int
        At least one.
    judged : sequence of (stage or None, confidence)

    Returns
    -------
    dict
        JSON values: ``accuracy``, its ``interval`` (95 %, bootstrap over the cells), ``recall`` of each stage that
        occurs, ``mean_recall``, ``confusion`` (true stage to the number of cells taken for each stage, or for
        ``none``), and ``calibration_error`` (expected calibration error of the confidence).
    """
    right = np.array([found == stage for stage, (found, _) in zip(truth, judged, strict=True)])
    sure = np.array([confidence for _, confidence in judged])
    names = [*map(str, STAGES), UNKNOWN]
    confusion = {str(stage): dict.fromkeys(names, 0) for stage in STAGES if stage in truth}
    for stage, (found, _) in zip(truth, judged, strict=True):
        confusion[str(stage)][UNKNOWN if found is None else str(found)] += 1
    recall = {stage: row[stage] / sum(row.values()) for stage, row in confusion.items()}
    accuracy = float(right.mean())
    # A mean of yes and no, over cells drawn with replacement, is a binomial draw.
    drawn = np.random.default_rng(0).binomial(len(right), accuracy, RESAMPLES) / len(right)
    calibration = Reliability().add(np.round(sure * (LEVELS - 1)).astype(np.uint8), right)
    return {
        "accuracy": accuracy,
        "interval": interval(drawn),
        "recall": recall,
        "mean_recall": sum(recall.values()) / len(recall),
        "confusion": confusion,
        "calibration_error": calibration.error(),
    }


def confusion_table(scores: dict[str, Any]) -> str:
    """The confusion matrix of :func:`score_judgements` as text: true stages down, found stages across."""
    names = [*map(str, STAGES), UNKNOWN]
    if not any(row[UNKNOWN] for row in scores["confusion"].values()):
        names.remove(UNKNOWN)
    recall = scores["recall"]
    rows = [(stage, *(row[name] for name in names), recall[stage]) for stage, row in scores["confusion"].items()]
    return format_table(("true stage", *names, "recall"), rows)


def described(scores: dict[str, Any]) -> str:
    """The scores of :func:`score_classifier` as text: both confusion matrices."""
    parts = [f"{len(scores['cells'])} cells"]
    for title, one in (("classifier", scores), ("rule", scores["rule"])):
        low, high = one["interval"]
        parts += ["", f"{title}: accuracy {one['accuracy']:.3f} (95 % {low:.3f}-{high:.3f}), "
                  f"expected calibration error {one['calibration_error']:.3f}", "", confusion_table(one)]  # fmt: skip
    return "\n".join(parts)
