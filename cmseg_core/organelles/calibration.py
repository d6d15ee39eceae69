"""Probabilities that mean what they say."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class DeliveredVoxels:
    """Held-out voxels of the native grid, and what the probabilities there are made of.

    Attributes
    ----------
    said : ndarray of float32, shape (voxels, corners, directions, classes)
        What each direction says at the voxels of the cube that a voxel lies between: eight where probabilities are
        interpolated, else one.
    shares : ndarray of float32, shape (voxels, corners)
        What each of them counts for; of sum 1.
    truth : ndarray of uint8, shape (voxels,)
    """

    said: NDArray[np.float32]
    shares: NDArray[np.float32]
    truth: NDArray[np.uint8]


def fit_temperature(voxels: DeliveredVoxels, weights: Weights | None) -> float:
    """Temperature with the least cross-entropy of what the directions say together, on the grid of the result.

    It is the fused probability that the pipeline reports, and fusing changes how sure it is: the maximum of several
    directions, brought back to a sum of 1, is less sure than any of them. So does the way from the cube to the native
    grid, where an outline that runs between two voxels of the cube is known better than either of them.

    Parameters
    ----------
    voxels : DeliveredVoxels
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
    count, corners, directions, classes = voxels.said.shape
    every = np.arange(count)

    def cross_entropy(log_temperature: float) -> float:
        softened = apply_temperature(voxels.said, float(np.exp(log_temperature)))
        fused = fuse(softened.reshape(-1, directions, classes), weights).reshape(count, corners, classes)
        fused = np.einsum("vkc,vk->vc", fused, voxels.shares)
        return float(-np.log(np.maximum(fused[every, voxels.truth] / fused.sum(axis=1), _TINY)).mean())

    found = minimize_scalar(cross_entropy, bounds=(np.log(0.25), np.log(4.0)), method="bounded")
    return float(np.exp(found.x))
