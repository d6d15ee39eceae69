"""How well cells were told apart: the accuracy of the separation, which Kousaka et al. 2025 do not report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmseg_core.evaluation.contingency import Contingency, count_contingency
from cmseg_core.schema import Frozen

JUDGED = ("nothing", "cells at IoU .50", "cells at IoU .75", "foreground")
"""What the gate compares of models that find cells."""


class CellScores(Frozen):
    """Scores of one label volume against its truth; None where a score has no meaning.

    Attributes
    ----------
    ap50, ap75 : float or None
        Average precision TP / (TP + FP + FN) at an IoU of at least 0.5 and 0.75, as StarDist and Cellpose define it
        (not the area under a precision-recall curve). None where neither volume holds a cell.
    pq : float or None
        Panoptic quality: the summed IoU of the pairs matched at 0.5 over TP + FP / 2 + FN / 2.
    voi_split, voi_merge : float or None
        Variation of information in bits, over voxels that are a cell in the truth: H(predicted | truth), which grows
        as cells are split, and H(truth | predicted), which grows as they are merged. None without true cells.
    arand : float or None
        Adapted Rand error, over the same voxels.
    count_error : float or None
        \\|n_predicted - n_true\\| / n_true. None without true cells.

    References
    ----------
    .. [1] Schmidt et al., "Cell detection with star-convex polygons", MICCAI (2018).
    .. [2] Kirillov et al., "Panoptic segmentation", CVPR (2019).
    .. [3] Meila, "Comparing clusterings: an information based distance", J. Multivar. Anal. 98:873 (2007).
    .. [4] Arganda-Carreras et al., Front. Neuroanat. 9:142 (2015).
    """

    ap50: float | None
    ap75: float | None
    pq: float | None
    voi_split: float | None
    voi_merge: float | None
    arand: float | None
    count_error: float | None


def threshold_does_better(scores: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool:
    """Whether the classical method finds the cells better: by AP75, and where that is equal by panoptic quality.

    Parameters
    ----------
    scores, baseline : mapping
        With ``ap75`` and ``pq``, of the method in use and of the classical one.
    """
    sams, thresholds = ((found["ap75"] or 0.0, found["pq"] or 0.0) for found in (scores, baseline))
    return thresholds > sams


ADVICE = "The threshold finds these cells better: set foreground.method to threshold for images like these."
"""What to say then."""


def score_cells(truth: np.ndarray, predicted: np.ndarray) -> CellScores:
    """Score separated cells against ground truth.

    Parameters
    ----------
    truth, predicted : ndarray of integers, shape (z, y, x)
        0 is background. It is no cell, so it takes no part in AP, PQ and the count; VOI and the Rand error ignore the
        voxels that are background in the truth, as scikit-image does with ``ignore_labels=(0,)``.

    Returns
    -------
    CellScores

    Raises
    ------
    InputError
        Where the shapes differ or the labels are not integers.
    """
    return score_and_pair(truth, predicted)[0]


def score_and_pair(truth: np.ndarray, predicted: np.ndarray) -> tuple[CellScores, Pairs]:
    """What :func:`score_cells` gives, and the pairs of cells behind it, for scores over several volumes."""
    table = count_contingency(truth, predicted)
    found = _paired(table)
    split, merge = _variation_of_information(table)
    scores = CellScores(
        ap50=average_precision([found], 0.5),
        ap75=average_precision([found], 0.75),
        pq=panoptic_quality([found]),
        voi_split=split,
        voi_merge=merge,
        arand=_adapted_rand_error(table),
        count_error=abs(found.predicted - found.true) / found.true if found.true else None,
    )
    return scores, found


@dataclass(frozen=True)
class Pairs:
    """The cells of a volume that were found.

    Attributes
    ----------
    ious : tuple of float
        Of the true cells with the found ones that they are paired with, at least 0.5 each.
    true, predicted : int
        Number of cells.
    """

    ious: tuple[float, ...]
    true: int
    predicted: int

    def matched(self, least_iou: float) -> int:
        """Pairs of at least this IoU, which is no less than 0.5."""
        return sum(iou >= least_iou for iou in self.ious)


def average_precision(volumes: Sequence[Pairs], least_iou: float) -> float | None:
    """TP / (TP + FP + FN) over the cells of all volumes together; None where there are none."""
    matched = sum(one.matched(least_iou) for one in volumes)
    together = sum(one.true + one.predicted for one in volumes) - matched
    return matched / together if together else None


def panoptic_quality(volumes: Sequence[Pairs]) -> float | None:
    """Summed IoU of the pairs over TP + FP / 2 + FN / 2, of all volumes together; None where there are no cells."""
    together = sum(one.true + one.predicted for one in volumes)
    return 2 * float(sum(sum(one.ious) for one in volumes)) / together if together else None


def _paired(table: Contingency) -> Pairs:
    true, predicted = (len(np.unique(ids[ids > 0])) for ids in (table.truth, table.predicted))
    return Pairs(tuple(iou for _, _, iou in _matches(table, 0.5)), true, predicted)


def table_of_cells(truth: np.ndarray, predicted: np.ndarray) -> NDArray[np.int64]:
    """Counts of found, missed and made-up cells and voxels, as a table for the gate.

    Parameters
    ----------
    truth, predicted : ndarray of integers, shape (z, y, x)

    Returns
    -------
    ndarray of int64, shape (4, 4)
        By the measures of :data:`JUDGED`: on the diagonal what was found, in the first column what was missed, in the
        first row what was made up. The IoU of a row is thus the average precision, or the IoU of the foreground.
    """
    table = count_contingency(truth, predicted)
    pairs = _paired(table)
    true, found = table.truth > 0, table.predicted > 0
    both, missed, made_up = (int(table.voxels[w].sum()) for w in (true & found, true & ~found, ~true & found))
    counts = np.zeros((len(JUDGED), len(JUDGED)), np.int64)
    for row, least in ((1, 0.5), (2, 0.75)):
        matched = pairs.matched(least)
        counts[row, row], counts[row, 0], counts[0, row] = matched, pairs.true - matched, pairs.predicted - matched
    counts[3, 3], counts[3, 0], counts[0, 3] = both, missed, made_up
    return counts


def match_cells(truth: np.ndarray, predicted: np.ndarray, least_iou: float = 0.5) -> dict[int, int]:
    """Which true cell each predicted cell is.

    Parameters
    ----------
    truth, predicted : ndarray of integers, shape (z, y, x)
    least_iou : float
        At least 0.5, so that the pairs are unique.

    Returns
    -------
    dict
        Predicted id to true id, one to one, for the pairs whose IoU is at least `least_iou`; in the order of the
        predicted ids.
    """
    if least_iou < 0.5:
        raise ValueError(f"least_iou must be at least 0.5, not {least_iou}")
    return dict(sorted((p, t) for t, p, _ in _matches(count_contingency(truth, predicted), least_iou)))


def _matches(table: Contingency, least_iou: float) -> list[tuple[int, int, float]]:
    """Pairs (truth, predicted, IoU), one to one.

    Above 0.5 a label has one partner. At exactly 0.5 two halves compete for one whole and for nothing else, so that
    taking the first is optimal.
    """
    sizes = [dict(zip(*_totals(ids, table.voxels), strict=True)) for ids in (table.truth, table.predicted)]
    cells = (table.truth > 0) & (table.predicted > 0)
    pairs, taken = [], (set(), set())
    for t, p, shared in zip(table.truth[cells].tolist(), table.predicted[cells].tolist(),
                            table.voxels[cells].tolist(), strict=True):  # fmt: skip
        iou = shared / (sizes[0][t] + sizes[1][p] - shared)
        if iou >= least_iou and t not in taken[0] and p not in taken[1]:
            taken[0].add(t)
            taken[1].add(p)
            pairs.append((t, p, iou))
    return pairs


def _totals(ids: np.ndarray, voxels: np.ndarray) -> tuple[list[int], list[int]]:
    unique, inverse = np.unique(ids, return_inverse=True)
    total = np.zeros(len(unique), np.int64)
    np.add.at(total, inverse, voxels)
    return unique.tolist(), total.tolist()


def _in_true_cells(table: Contingency) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shared voxels, and the totals of the true and of the predicted label of each pair, inside true cells."""
    kept = table.truth > 0
    shared = table.voxels[kept].astype(np.float64)
    totals = []
    for ids in (table.truth[kept], table.predicted[kept]):
        _, inverse = np.unique(ids, return_inverse=True)
        totals.append(np.bincount(inverse, shared)[inverse])
    return shared, totals[0], totals[1]


def _variation_of_information(table: Contingency) -> tuple[float | None, float | None]:
    shared, of_truth, of_predicted = _in_true_cells(table)
    if not len(shared):
        return None, None
    weight = shared / shared.sum()
    split = -float(weight @ np.log2(shared / of_truth))
    merge = -float(weight @ np.log2(shared / of_predicted))
    return max(split, 0.0), max(merge, 0.0)


def _adapted_rand_error(table: Contingency) -> float | None:
    shared, of_truth, of_predicted = _in_true_cells(table)
    together = float(shared @ shared - shared.sum())
    # The sum over labels of size**2 is the sum over pairs of shared * size.
    true_pairs = float(shared @ of_truth - shared.sum())
    predicted_pairs = float(shared @ of_predicted - shared.sum())
    if true_pairs + predicted_pairs == 0:
        return None
    return 1.0 - 2.0 * together / (true_pairs + predicted_pairs)
