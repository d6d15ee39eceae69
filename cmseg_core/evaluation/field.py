"""Scores of the organelles of a whole field, pooled and per cell-cycle stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cc3d
import numpy as np

from cmseg_core.evaluation.instances import match_cells
from cmseg_core.evaluation.overlap import ClassCounts, StageCounts
from cmseg_core.schema import Stage, Taxonomy

_SECTIONS = 64
"""Sections counted at a time."""


def score_field(truth: np.ndarray, predicted: Any, taxonomy: Taxonomy) -> dict[str, Any]:
    """IoU and Dice of every class over a whole field.

    Parameters
    ----------
    truth : ndarray of unsigned integers, shape (z, y, x)
        True class ids.
    predicted : array-like of uint8, shape (z, y, x)
        Predicted class ids; anything that gives NumPy arrays when sliced.
    taxonomy : Taxonomy

    Returns
    -------
    dict
        ``iou`` and ``dice`` by class, ``mean_iou`` over the classes that are not background; None where undefined.
    """
    counts = ClassCounts(taxonomy)
    for start in range(0, truth.shape[0], _SECTIONS):
        counts.add(truth[start : start + _SECTIONS], np.asarray(predicted[start : start + _SECTIONS]))
    iou = counts.iou()
    defined = [value for kind in taxonomy.foreground if (value := iou[kind.name]) is not None]
    return {"iou": iou, "dice": counts.dice(), "mean_iou": float(np.mean(defined)) if defined else None}


def score_stages(
    truth: np.ndarray,
    predicted: Any,
    truth_cells: np.ndarray,
    predicted_cells: Any,
    stages: Mapping[int, Stage],
    taxonomy: Taxonomy,
) -> dict[str, dict[str, float | None]]:
    """IoU of every class over the found cells of each stage.

    Parameters
    ----------
    truth, predicted : array-like, shape (z, y, x)
        Class ids.
    truth_cells, predicted_cells : array-like, shape (z, y, x)
        Cell ids. A true cell counts where a predicted one has an IoU of at least 0.5 with it; both are compared in
        the true cell's box, where all but the union of the two is background.
    stages : mapping of int to int
        True cell to its stage.
    taxonomy : Taxonomy

    Returns
    -------
    dict
        Stage to class to IoU.
    """
    counts = StageCounts(taxonomy)
    boxes = cc3d.statistics(truth_cells)["bounding_boxes"]
    for found, true in match_cells(truth_cells, predicted_cells).items():
        if true not in stages:
            continue
        # A matched cell may reach beyond the true one: half as wide again holds all but a rare tail.
        box = tuple(
            slice(max(0, span.start - (span.stop - span.start) // 4), min(n, span.stop + (span.stop - span.start) // 4))
            for span, n in zip(boxes[true], truth.shape, strict=True)
        )
        either = (truth_cells[box] == true) | (np.asarray(predicted_cells[box]) == found)
        counts.add(truth[box] * either, np.asarray(predicted[box]) * either, stages[true])
    return counts.per_stage()
