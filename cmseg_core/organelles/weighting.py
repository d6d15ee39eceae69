"""How much each direction counts for in each class, found on held-out voxels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cmseg_core.evaluation.bootstrap import pooled_iou, resampled_iou
from cmseg_core.organelles.fusion import AXES, Weights, equal_weights, fuse

LEAST_CELLS = 5
"""With fewer held-out cells there is no telling a gain from chance, and all directions count alike."""

ERRORS = 3
"""Standard errors that a gain has to exceed: some hundred changes are tried, and chance favours the best of them."""

_LEANINGS = (-0.5, 0.25, 0.5, 1.0)
"""From the mean towards one direction: without it, half on it, two thirds on it, it alone."""


def fit_weights(probabilities: NDArray[np.float32], truth: NDArray[np.integer], cell: NDArray[np.integer]) -> Weights:
    """Weights of the directions with which the fused labels have the highest mean IoU.

    From the mean of the directions on, the change with the largest gain is made until none gains beyond chance. A
    change leans one class, or all of them, towards one direction, or leaves that out. Gains are of the final labels,
    since a class wins a voxel only from another; their chance is judged by drawing cells with replacement, because the
    voxels of one cell are right or wrong together.

    Parameters
    ----------
    probabilities : ndarray of float32, shape (voxels, 3, classes)
        Calibrated, of held-out voxels that the truth or a direction calls foreground.
    truth : ndarray of integers, shape (voxels,)
    cell : ndarray of integers, shape (voxels,)
        Which cell a voxel is of.

    Returns
    -------
    ndarray of float64, shape (3, classes)
        Of sum 1 over the directions.
    """
    classes = probabilities.shape[-1]
    names, number = np.unique(cell, return_inverse=True)
    weights = equal_weights(classes)
    if len(names) < LEAST_CELLS:
        return weights
    place = (number * classes + truth) * classes

    def counted(labels: NDArray[np.intp]) -> NDArray[np.int64]:
        return np.bincount(place + labels, minlength=len(names) * classes**2).reshape(len(names), classes, classes)

    now = counted(fuse(probabilities, weights).argmax(axis=1))
    while True:
        tried = ((changed, counted(labels)) for changed, labels in _changes(probabilities, weights))
        changed, then = max(tried, key=lambda one: _mean_iou(pooled_iou(one[1].sum(axis=0))))
        gain = _mean_iou(pooled_iou(then.sum(axis=0))) - _mean_iou(pooled_iou(now.sum(axis=0)))
        drawn = _mean_iou(resampled_iou(then)) - _mean_iou(resampled_iou(now))
        if gain <= ERRORS * drawn.std():
            return weights
        weights, now = changed, then


def _changes(probabilities: NDArray[np.float32], weights: Weights) -> Iterator[tuple[Weights, NDArray[np.intp]]]:
    """All weights one change away, with the labels that they lead to."""
    for leaning in _leanings():
        everywhere = np.repeat(leaning[:, None], weights.shape[1], axis=1)
        yield everywhere, fuse(probabilities, everywhere).argmax(axis=1)
    fused = fuse(probabilities, weights)
    for number in range(weights.shape[1]):
        rivals = fused.copy()
        rivals[:, number] = -1
        rival, strongest = rivals.argmax(axis=1), rivals.max(axis=1)
        for leaning in _leanings():
            changed = weights.copy()
            changed[:, number] = leaning
            wins = probabilities[:, :, number] @ leaning.astype(np.float32) > strongest
            yield changed, np.where(wins, number, rival)


def _leanings() -> Iterator[NDArray[np.float64]]:
    mean = np.full(len(AXES), 1 / len(AXES))
    yield mean
    for alone in np.eye(len(AXES)):
        for leaning in _LEANINGS:
            yield np.maximum(mean + leaning * (alone - mean), 0.0)


def _mean_iou(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the foreground classes; one that neither truth nor result holds is right."""
    return np.nan_to_num(iou[..., 1:], nan=1.0).mean(axis=-1)
