"""Probabilities that mean what they say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from cmseg_core.organelles.fusion import Weights, fuse

_TINY = 1e-7


def apply_temperature(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Softmax of ``log(p) / temperature`` along the last axis; 1 returns the probabilities as they are."""
    if temperature == 1.0:
        return probabilities
    scaled = np.maximum(probabilities, _TINY) ** np.float32(1 / temperature)
    return scaled / scaled.sum(axis=-1, keepdims=True)


def fit_temperature(probabilities: NDArray[np.float32], truth: NDArray[np.integer], weights: Weights | None) -> float:
    """Temperature with the least cross-entropy of what the directions say together.

    It is the fused probability that the pipeline reports, and fusing changes how sure it is: the maximum of several
    directions, brought back to a sum of 1, is less sure than any of them.

    Parameters
    ----------
    probabilities : ndarray of float32, shape (voxels, directions, classes)
        Of held-out voxels.
    truth : ndarray of integers, shape (voxels,)
    weights : ndarray of float64, shape (directions, classes), or None
        What a direction counts for in each class. None: the maximum.

    Returns
    -------
    float
        Between 0.25 and 4.

    References
    ----------
    .. [1] Guo et al., "On calibration of modern neural networks", 2017.
    """
    voxels = np.arange(len(truth))

    def cross_entropy(log_temperature: float) -> float:
        softened = apply_temperature(probabilities, float(np.exp(log_temperature)))
        fused = fuse(softened, weights)
        return float(-np.log(np.maximum(fused[voxels, truth] / fused.sum(axis=1), _TINY)).mean())

    found = minimize_scalar(cross_entropy, bounds=(np.log(0.25), np.log(4.0)), method="bounded")
    return float(np.exp(found.x))
