"""Median and majority filters."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numba
import numpy as np
from scipy import ndimage

NETWORK_DTYPES = (np.uint8, np.uint16, np.int16)
VECTOR = 64
RUN = 1024
"""Voxels that go through the network together: few calls, and the lists stay in the first cache."""
SORT_9 = np.array(
    [
        (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (0, 3), (3, 6), (0, 3), (1, 4), (4, 7),
        (1, 4), (2, 5), (5, 8), (2, 5), (1, 3), (5, 7), (2, 6), (4, 6), (2, 4), (2, 3), (5, 6),
    ]
)  # fmt: skip
"""Exchanges that sort nine values."""
MERGE_27 = np.array(
    [
        (8, 9), (9, 11), (16, 18), (17, 19), (9, 10), (17, 18), (11, 15), (18, 22), (19, 23), (11, 13), (18, 20),
        (19, 21), (11, 12), (13, 14), (19, 20), (21, 22), (0, 8), (1, 9), (2, 10), (3, 11), (4, 12), (5, 13), (6, 14),
        (4, 8), (5, 9), (6, 10), (7, 11), (22, 26), (2, 4), (3, 5), (6, 8), (7, 9), (10, 12), (11, 13), (22, 24),
        (23, 25), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (4, 20), (5, 21), (6, 22), (7, 23), (8, 24), (8, 16),
        (9, 17), (10, 18), (11, 19), (12, 20), (13, 21), (14, 22), (7, 11), (12, 16), (13, 17), (14, 18), (11, 13),
        (14, 16), (13, 14),
    ]
)  # fmt: skip
"""Exchanges that bring the median of three sorted lists of nine (0-8, 9-17, 18-26) to place 13.

Batcher's odd-even merge sort without the exchanges that never act on sorted lists and those that place 13 does not
depend on; by the 0-1 principle, the thousand ways to fill three sorted lists with zeros and ones prove it.
"""


def median_3x3x3(volume: np.ndarray) -> np.ndarray:
    """Median of the 27 voxels round each voxel; the volume is continued by its border voxels.

    Parameters
    ----------
    volume : ndarray of shape (z, y, x)
        uint8, uint16 and int16 take a network of exchanges over whole rows, other types SciPy's filter.

    Returns
    -------
    ndarray of the same shape and type
        Equal to ``scipy.ndimage.median_filter(volume, size=3, mode="nearest")``.

    References
    ----------
    .. [1] K. E. Batcher, Sorting networks and their applications, AFIPS Spring Joint Computer Conf. 32 (1968).
    """
    if volume.dtype not in NETWORK_DTYPES:
        return ndimage.median_filter(volume, size=3, mode="nearest")
    out = np.empty(volume.shape, volume.dtype)
    _median_rows(np.ascontiguousarray(volume), out, SORT_9, MERGE_27)
    return out


def median_slab(read: Callable[[int, int], np.ndarray], start: int, stop: int, depth: int) -> np.ndarray:
    """Median of sections `start` up to `stop` of a larger volume, as if the whole volume had been filtered.

    Parameters
    ----------
    read : callable
        ``read(first, last)`` gives sections of the unfiltered volume as (z, y, x); it is called once, with one more
        section at either side where there is one.
    start, stop : int
        Sections to filter.
    depth : int
        Sections of the whole volume.

    Returns
    -------
    ndarray of shape (stop - start, y, x)
    """
    first, last = max(0, start - 1), min(depth, stop + 1)
    return median_3x3x3(read(first, last))[start - first : stop - first]


def median_sections(volume: np.ndarray, size: int = 3) -> np.ndarray:
    """Two-dimensional median of every section.

    Parameters
    ----------
    volume : ndarray of shape (z, y, x)
        uint8, uint16 or float32.
    size : int
        Edge of the window in pixels: 3 or 5.

    Returns
    -------
    ndarray of the same shape and type
        Equal to ``scipy.ndimage.median_filter`` of each section with ``mode="nearest"``.
    """
    if size not in (3, 5):
        raise ValueError(f"the window is 3 or 5 pixels wide, not {size}")
    out = np.empty(volume.shape, volume.dtype)
    for z in range(volume.shape[0]):
        out[z] = cv2.medianBlur(np.ascontiguousarray(volume[z]), size)
    return out


def mode_3x3x3(labels: np.ndarray) -> np.ndarray:
    """Most frequent class among the 27 voxels round each voxel; the volume is continued by its border voxels.

    Parameters
    ----------
    labels : ndarray of uint8, shape (z, y, x)

    Returns
    -------
    ndarray of uint8, shape (z, y, x)
        Where classes tie, the voxel's own class if it is among them, else the smallest id. The time taken grows with
        the number of classes.
    """
    if labels.dtype != np.uint8:
        raise ValueError(f"labels are uint8, not {labels.dtype}")
    labels = np.ascontiguousarray(labels)
    out = np.empty_like(labels)
    classes = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=256)).astype(np.uint8)
    _mode_rows(labels, out, classes)
    return out


@numba.njit(cache=True, nogil=True)
def _exchange(low: np.ndarray, high: np.ndarray) -> None:
    for x in range(low.size):
        a, b = low[x], high[x]
        low[x] = min(a, b)
        high[x] = max(a, b)


@numba.njit(cache=True, nogil=True)
def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """A plain loop: assigning slices makes numba test for overlap and costs more than the copy."""
    for x in range(target.size):
        target[x] = source[x]


@numba.njit(cache=True, nogil=True)
def _gather(volume: np.ndarray, z: int, y: int, columns: np.ndarray, start: int) -> None:
    """Lay the nine rows round row (z, y), one voxel wider at either end, below each other from `start` on."""
    depth, height, width = volume.shape
    for k in range(9):
        row = volume[min(max(z + k // 3 - 1, 0), depth - 1), min(max(y + k % 3 - 1, 0), height - 1)]
        columns[k, start] = row[0]
        _copy(row, columns[k, start + 1 : start + width + 1])
        columns[k, start + width + 1] = row[width - 1]


@numba.njit(cache=True, nogil=True)
def _median_section(volume: np.ndarray, z: int, out: np.ndarray, sort: np.ndarray, merge: np.ndarray) -> None:
    height, width = volume.shape[1:]
    wide = width + 2
    rows = max(1, RUN // wide)
    # The nine voxels above, at and below each column are sorted once and serve three medians.
    length = -(-rows * wide // VECTOR) * VECTOR
    columns = np.zeros((9, length + VECTOR), volume.dtype)
    lists = np.empty((27, length), volume.dtype)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        for y in range(first, last):
            _gather(volume, z, y, columns, (y - first) * wide)
        for e in range(sort.shape[0]):
            _exchange(columns[sort[e, 0]], columns[sort[e, 1]])
        for k in range(9):
            for shift in range(3):
                _copy(columns[k, shift : shift + length], lists[9 * shift + k])
        for e in range(merge.shape[0]):
            _exchange(lists[merge[e, 0]], lists[merge[e, 1]])
        for y in range(first, last):
            start = (y - first) * wide
            _copy(lists[13, start : start + width], out[z, y])


@numba.njit(parallel=True, cache=True, nogil=True)
def _median_rows(volume: np.ndarray, out: np.ndarray, sort: np.ndarray, merge: np.ndarray) -> None:
    for z in numba.prange(volume.shape[0]):
        _median_section(volume, z, out, sort, merge)


@numba.njit(cache=True, nogil=True)
def _count_class(row: np.ndarray, label: int, column: np.ndarray) -> None:
    """Add to `column`, one voxel wider at either end, where the row holds the class."""
    width = row.size
    for x in range(width):
        column[x + 1] += np.uint8(row[x] == label)
    column[0] += np.uint8(row[0] == label)
    column[width + 1] += np.uint8(row[width - 1] == label)


@numba.njit(cache=True, nogil=True)
def _vote(
    column: np.ndarray, label: int, own: np.ndarray, own_count: np.ndarray, best: np.ndarray, winner: np.ndarray
) -> None:
    """Let one class, in ascending order of ids, compete at every voxel of a row."""
    for x in range(own.size):
        count = np.uint8(column[x] + column[x + 1] + column[x + 2])
        own_count[x] = count if own[x] == label else own_count[x]
        winner[x] = label if count > best[x] else winner[x]
        best[x] = max(best[x], count)


@numba.njit(cache=True, nogil=True)
def _mode_section(labels: np.ndarray, z: int, out: np.ndarray, classes: np.ndarray) -> None:
    depth, height, width = labels.shape
    column = np.empty(width + 2, np.uint8)
    own_count, best, winner = np.empty(width, np.uint8), np.empty(width, np.uint8), np.empty(width, np.uint8)
    for y in range(height):
        best[:] = 0
        winner[:] = 0
        own = labels[z, y]
        for label in classes:
            column[:] = 0
            for k in range(9):
                row = labels[min(max(z + k // 3 - 1, 0), depth - 1), min(max(y + k % 3 - 1, 0), height - 1)]
                _count_class(row, label, column)
            _vote(column, label, own, own_count, best, winner)
        for x in range(width):
            out[z, y, x] = own[x] if own_count[x] == best[x] else winner[x]


@numba.njit(parallel=True, cache=True, nogil=True)
def _mode_rows(labels: np.ndarray, out: np.ndarray, classes: np.ndarray) -> None:
    for z in numba.prange(labels.shape[0]):
        _mode_section(labels, z, out, classes)
