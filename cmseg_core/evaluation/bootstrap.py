"""How sure a score is: bootstrap intervals over cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95


def pooled_iou(tables: NDArray[np.integer]) -> NDArray[np.float64]:
    """IoU of every class from confusion tables.

    Parameters
    ----------
    tables : ndarray of integers, shape (..., classes, classes)
        Voxels by true class (rows) and predicted class (columns).

    Returns
    -------
    ndarray of float64, shape (..., classes)
        NaN where neither truth nor result holds the class.
    """
    shared = np.diagonal(tables, axis1=-2, axis2=-1).astype(np.float64)
    union = tables.sum(axis=-1) + tables.sum(axis=-2) - shared
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(union > 0, shared / union, np.nan)


def resampled_iou(
    tables: NDArray[np.integer], seed: int = 0, resamples: int = RESAMPLES, size: int | None = None
) -> NDArray[np.float64]:
    """IoU of every class pooled over cells drawn with replacement.

    Parameters
    ----------
    tables : ndarray of integers, shape (cells, classes, classes)
        One confusion table a cell.
    seed : int
        The same seed draws the same cells, so that two models on one data set are compared draw by draw.
    resamples : int
    size : int, optional
        Cells in a draw; by default as many as there are.

    Returns
    -------
    ndarray of float64, shape (resamples, classes)

    References
    ----------
    .. [1] Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    count = len(tables)
    times = np.random.default_rng(seed).multinomial(size or count, np.full(count, 1 / count), size=resamples)
    drawn = np.tensordot(times, tables, axes=1)
    return pooled_iou(drawn)


def interval(samples: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float] | None:
    """The central interval of resampled scores that holds a share `level` of them; None where all are NaN."""
    known = samples[~np.isnan(samples)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
