"""Holes in cells closed: what is enclosed by a cell belongs to it."""

from __future__ import annotations

import cv2
import numpy as np


def close_holes(foreground: np.ndarray, half: int, largest: int) -> np.ndarray:
    """Raise evidence in the holes of each section to that of a cell.

    A hole is a 4-connected piece of background that does not reach the border of what is given, and is at most
    `largest` pixels wide and high. So in a part of a volume, holes are found as in the whole wherever `largest` + 1
    voxels of surroundings are given along y and x.

    Parameters
    ----------
    foreground : ndarray of uint8, shape (z, y, x)
        Evidence of a cell.
    half : int
        Evidence from which a voxel belongs to a cell.
    largest : int
        Pixels.

    Returns
    -------
    ndarray of uint8, shape (z, y, x)
    """
    return np.stack([_closed(section, half, largest) for section in foreground])


def _closed(section: np.ndarray, half: int, largest: int) -> np.ndarray:
    background = (section < half).view(np.uint8)
    _, pieces, statistics, _ = cv2.connectedComponentsWithStats(background, connectivity=4)
    left, top, width, height = statistics[:, :4].T
    rows, columns = section.shape
    inside = (left > 0) & (top > 0) & (left + width < columns) & (top + height < rows)
    hole = inside & (np.maximum(width, height) <= largest)
    hole[0] = False  # the cells themselves
    return np.where(hole[pieces], np.maximum(section, half), section).astype(np.uint8)
