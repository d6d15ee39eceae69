"""One cell seen without its neighbours, alike in training and in inference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SKIN_VOXELS = 2
"""Voxels round a cell that stay as they are: a predicted outline is seldom exact."""


def resin_grey(image: NDArray[np.uint8], own: NDArray[np.bool_], others: NDArray[np.bool_] | None = None) -> int:
    """Median grey of the voxels outside every cell; 0 where there are none.

    Parameters
    ----------
    image : ndarray of uint8, shape (z, y, x)
    own, others : ndarray of bool, shape (z, y, x)
        The cell, and the union of its neighbours.
    """
    outside = ~own if others is None else ~(own | others)
    counts = np.bincount(image[outside], minlength=256)
    total = int(counts.sum())
    return int(np.searchsorted(np.cumsum(counts), (total + 1) // 2)) if total else 0


def dilate(mask: NDArray[np.bool_], voxels: int) -> NDArray[np.bool_]:
    """Grow a mask by `voxels` along every axis (a box, which is separable and cheap)."""
    return ndimage.maximum_filter(mask.view(np.uint8), size=2 * voxels + 1, mode="constant").view(np.bool_)


def isolate_cell(
    image: NDArray[np.uint8], own: NDArray[np.bool_], others: NDArray[np.bool_] | None
) -> NDArray[np.uint8]:
    """Replace the neighbours of a cell by the resin's median grey.

    Voxels within two of the cell stay. Training and inference both use this, so that the network never meets a
    neighbour in one that it did not meet in the other.

    Parameters
    ----------
    image : ndarray of uint8, shape (z, y, x)
    own : ndarray of bool, shape (z, y, x)
        The cell.
    others : ndarray of bool, shape (z, y, x), or None
        Union of the other cells. None, or an empty mask, returns the image as it is.

    Returns
    -------
    ndarray of uint8, shape (z, y, x)
    """
    if others is None or not others.any():
        return image
    return np.where(others & ~dilate(own, SKIN_VOXELS), np.uint8(resin_grey(image, own, others)), image)
