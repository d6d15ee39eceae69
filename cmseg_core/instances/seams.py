"""Whether cells end where blocks do."""

from __future__ import annotations

from typing import Any

import numpy as np

_LEAST_SITES = 1000
"""Pairs of voxels below which a seam says nothing."""
_WORST = 2.0
_SLACK = 0.10
"""A seam is bad where the share of pairs that differ is above `_WORST` times that beside it, plus this."""


def check_seams(labels: Any, edge: int) -> dict[str, float | int]:
    """Compare how often neighbouring voxels differ across the seams of blocks and right beside them.

    Parameters
    ----------
    labels : array of unsigned integers, shape (z, y, x)
        0 outside cells. Of NumPy, or one of which boxes are read.
    edge : int
        Of a block in voxels.

    Returns
    -------
    dict
        ``seams``, how many there are; ``across`` and ``beside``, the shares of the pairs of voxels with a cell in them
        that differ.

    Raises
    ------
    RuntimeError
        Where a seam is bad: the partition then shows the blocks it was made of.
    """
    counts = np.zeros(4, np.int64)
    seams = 0
    for axis in range(3):
        for place in range(edge, labels.shape[axis] - 1, edge):
            box = tuple(slice(place - 2, place + 2) if other == axis else slice(None) for other in range(3))
            found = _differing(np.moveaxis(np.asarray(labels[box]), axis, 0))
            across, across_sites, beside, beside_sites = found
            share, usual = across / max(across_sites, 1), beside / max(beside_sites, 1)
            if across_sites >= _LEAST_SITES and share > _WORST * usual + _SLACK:
                raise RuntimeError(
                    f"cells end at the seam of two blocks ({'zyx'[axis]} = {place}): {share:.0%} of the voxels differ "
                    f"across it, {usual:.0%} beside it; the partition cannot be trusted"
                )
            counts += found
            seams += 1
    return {
        "seams": seams,
        "across": float(counts[0] / max(counts[1], 1)),
        "beside": float(counts[2] / max(counts[3], 1)),
    }


def _differing(planes: np.ndarray) -> tuple[int, int, int, int]:
    """Pairs that differ, and pairs with a cell in them, across the middle of four planes and beside it."""
    different = planes[1:] != planes[:-1]
    sites = (planes[1:] > 0) | (planes[:-1] > 0)
    pairs, cells = different.sum(axis=(1, 2)), sites.sum(axis=(1, 2))
    return int(pairs[1]), int(cells[1]), int(pairs[0] + pairs[2]), int(cells[0] + cells[2])
