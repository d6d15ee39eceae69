"""Probabilities that mean what they say."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

_TINY = 1e-7
_SAMPLES = 200_000


def apply_temperature(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Softmax of ``log(p) / temperature`` along the last axis; 1 returns the probabilities as they are."""
    if temperature == 1.0:
        return probabilities
    scaled = np.maximum(probabilities, _TINY) ** np.float32(1 / temperature)
    return scaled / scaled.sum(axis=-1, keepdims=True)


def fit_temperature(
    network: keras.Model, batches: Sequence[tuple[NDArray[np.float32], NDArray[np.int32]]], seed: int = 0
) -> float:
    """Temperature with the least cross-entropy on held-out sections.

    Parameters
    ----------
    network : keras.Model
    batches : sequence of (images, labels)
        Float32 (batch, y, x, channels) and int32 (batch, y, x).
    seed : int
        Of the voxels that are looked at.

    Returns
    -------
    float
        Between 0.25 and 4.

    References
    ----------
    .. [1] Guo et al., "On calibration of modern neural networks", 2017.
    """
    share = max(_SAMPLES // len(batches), 1)
    rng = np.random.default_rng(seed)
    logs, truth = [], []
    for images, labels in batches:
        probabilities = np.asarray(network.predict_on_batch(images)).reshape(labels.size, -1)
        chosen = rng.choice(labels.size, min(share, labels.size), replace=False)
        logs.append(np.log(np.maximum(probabilities[chosen], _TINY)))
        truth.append(labels.ravel()[chosen])
    log, target = np.concatenate(logs).astype(np.float64), np.concatenate(truth)

    def cross_entropy(log_temperature: float) -> float:
        scaled = log / np.exp(log_temperature)
        peak = scaled.max(axis=1, keepdims=True)
        norm = peak[:, 0] + np.log(np.exp(scaled - peak).sum(axis=1))
        return float(np.mean(norm - scaled[np.arange(len(target)), target]))

    found = minimize_scalar(cross_entropy, bounds=(np.log(0.25), np.log(4.0)), method="bounded")
    return float(np.exp(found.x))
