"""Whether a review score finds the cells that went wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIRST = 0.2
"""Share of the cells that a person is taken to look at, and share of them that count as the worst."""


def risk_coverage(risk: NDArray[np.float64], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean risk of the cells that are trusted, for every number of them from one to all.

    Parameters
    ----------
    risk : ndarray of float64, shape (cells,)
        What went wrong with a cell: one minus its mean IoU.
    score : ndarray of float64, shape (cells,)
        Review score; the lowest are trusted first. Where scores are level, the mean over their orders is taken.

    Returns
    -------
    ndarray of float64, shape (cells,)
        The last is the mean risk of all cells.

    References
    ----------
    .. [1] Geifman, El-Yaniv, "Selective classification for deep neural networks", 2017.
    """
    order = np.argsort(score, kind="stable")
    return np.cumsum(_levelled(risk, score)[order]) / np.arange(1, len(risk) + 1)


def aurc(risk: NDArray[np.float64], score: NDArray[np.float64]) -> float:
    """Area under the risk-coverage curve: the mean of :func:`risk_coverage`.

    A random order has the mean risk at every coverage, and so the mean risk as its expected area.
    """
    return float(risk_coverage(risk, score).mean())


def worst_found(risk: NDArray[np.float64], score: NDArray[np.float64]) -> float:
    """Share of the worst fifth of the cells that is among the fifth with the highest score.

    Parameters
    ----------
    risk, score : ndarray of float64, shape (cells,)
        As for :func:`risk_coverage`; at least one cell. A fifth is rounded, and holds one cell at least.

    Returns
    -------
    float
        A random order finds a fifth of them, on average.
    """
    count = max(1, round(FIRST * len(risk)))
    worst = np.zeros(len(risk))
    worst[np.argsort(-risk, kind="stable")[:count]] = 1
    first = np.argsort(-score, kind="stable")[:count]
    return float(_levelled(worst, score)[first].sum() / count)


def _levelled(values: NDArray[np.float64], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values, with the mean in place of each where scores are level: their order would decide by chance."""
    _, group = np.unique(score, return_inverse=True)
    return (np.bincount(group, values) / np.bincount(group))[group]
