"""How many voxels every true label shares with every predicted one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmseg_core.errors import InputError

_SLAB_VOXELS = 1 << 23
"""Voxels counted at a time, so that memory does not grow with the volume."""
_HIGH = np.uint64(32)
_LOW_BITS = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Contingency:
    """A sparse contingency table.

    Attributes
    ----------
    truth, predicted : ndarray of int64, shape (pairs,)
        Labels that share voxels, sorted by truth, then by prediction; 0 is background.
    voxels : ndarray of int64, shape (pairs,)
        How many they share; always above 0.
    """

    truth: np.ndarray
    predicted: np.ndarray
    voxels: np.ndarray


def count_contingency(truth: np.ndarray, predicted: np.ndarray) -> Contingency:
    """Count the voxels that each true label shares with each predicted one.

    Labels are counted by runs along the last axis and in slabs of bounded size; the volumes may be memory maps.

    Parameters
    ----------
    truth, predicted : ndarray of integers, equal shapes
        Labels from 0 to 2**32 - 1.

    Returns
    -------
    Contingency

    Raises
    ------
    InputError
        Where the shapes differ or the labels are no such integers.
    """
    if truth.shape != predicted.shape:
        raise InputError(
            "truth", f"has shape {truth.shape}, the result {predicted.shape}", "give truth on the same grid"
        )
    for name, labels in (("truth", truth), ("predicted", predicted)):
        if labels.dtype.kind not in "iub":
            raise InputError(name, f"holds {labels.dtype}", "give integer labels")
    per_section = max(1, int(np.prod(truth.shape[1:], dtype=np.int64)))
    step = max(1, _SLAB_VOXELS // per_section)
    keys, voxels = np.empty(0, np.uint64), np.empty(0, np.int64)
    for start in range(0, truth.shape[0] if truth.size else 0, step):
        more_keys, more_voxels = _count_slab(truth[start : start + step], predicted[start : start + step])
        keys, voxels = _sum_by_key(np.concatenate([keys, more_keys]), np.concatenate([voxels, more_voxels]))
    return Contingency((keys >> _HIGH).astype(np.int64), (keys & _LOW_BITS).astype(np.int64), voxels)


def _count_slab(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, two = truth.ravel(), predicted.ravel()
    starts = np.flatnonzero((one[1:] != one[:-1]) | (two[1:] != two[:-1])) + 1
    starts = np.concatenate([[0], starts])
    lengths = np.diff(starts, append=one.size)
    ends = [np.asarray(labels[starts]) for labels in (one, two)]
    for name, labels in zip(("truth", "predicted"), ends, strict=True):
        if labels.dtype.kind != "b" and (labels.min() < 0 or labels.max() > 0xFFFFFFFF):
            raise InputError(name, "holds labels below 0 or above 2**32 - 1", "number the cells from 1")
    return _sum_by_key((ends[0].astype(np.uint64) << _HIGH) | ends[1].astype(np.uint64), lengths)


def _sum_by_key(keys: np.ndarray, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unique, inverse = np.unique(keys, return_inverse=True)
    total = np.zeros(len(unique), np.int64)
    np.add.at(total, inverse, voxels)
    return unique, total
