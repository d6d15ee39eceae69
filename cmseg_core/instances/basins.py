"""Basins of a landscape and the passes between them.

The basin of a voxel is the peak to which the steepest ascent leads: from voxel to the highest of its six neighbours,
until none is higher. Of equal heights the one further from the outside of all cells is higher, then the one that comes
later in the volume. So where a voxel belongs depends on nothing but the voxels on its way up (Bieniek and Moga 2000),
whichever block of the volume is looked at, while a flood depends on the order in which voxels are taken.

The *pass* between two basins is the highest point of their border. Steepest ascent keeps the heights over which peaks
are joined exactly, so that basins and passes hold all that h-maxima (Grimaud's dynamics) need.

References
----------
.. [1] Bieniek and Moga, "An efficient watershed algorithm based on connected components", Pattern Recognition 33:907
   (2000).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from cmseg_core.instances.blocks import Block, whole
from cmseg_core.instances.landscape import Landscape


@dataclass(frozen=True, eq=False)
class BasinTable:
    """What one block tells of the basins it sees.

    Attributes
    ----------
    peak : ndarray of int64, shape (n,)
        Rising; flat position in the volume of the peak of each basin, or of the voxel where the ascent left what was
        looked at.
    left : ndarray of bool, shape (n,)
        Whether the ascent goes on from there, in another block.
    height : ndarray of float32, shape (n,)
        Of the landscape at the peak.
    width : ndarray of float32, shape (n,)
        Largest distance to the outside in this block.
    voxels : ndarray of int64, shape (n,)
        In this block; 0 for basins that only touch it.
    moment : ndarray of int64, shape (n, 3)
        Sums of the coordinates z, y, x of those voxels in the volume.
    first, second : ndarray of int64, shape (m,)
        Rows of the two basins of each pass.
    pass_height, pass_width : ndarray of float32, shape (m,)
        Landscape and distance at the highest point of the border.
    """

    peak: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    voxels: np.ndarray
    moment: np.ndarray
    first: np.ndarray
    second: np.ndarray
    pass_height: np.ndarray
    pass_width: np.ndarray


def find_basins(
    landscape: Landscape, mask: np.ndarray, block: Block | None = None, seen: Block | None = None
) -> tuple[np.ndarray, BasinTable]:
    """Basins of a block of a volume.

    Parameters
    ----------
    landscape : Landscape
        Of `seen`.
    mask : ndarray of bool, shape (z, y, x)
        Of `seen`: what belongs to basins.
    block : Block, optional
        By default the arrays are the whole volume.
    seen : Block, optional
        Holds the block, and beyond it at least two voxels wherever the volume goes on. The more, the fewer ascents
        leave what is seen.

    Returns
    -------
    labels : ndarray of uint32, shape of the block
        0 outside the mask, else one more than the row of the table.
    table : BasinTable
    """
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    block, seen = block or whole(shape), seen or whole(shape)
    height, distance = np.ascontiguousarray(landscape.height), np.ascontiguousarray(landscape.distance)
    end = _climb(height, distance, np.ascontiguousarray(mask), _goes_on(seen))
    _follow(end)
    beside = block.grown((0, 0, 0), (1, 1, 1))
    view = beside.within(seen)
    ends = end.reshape(shape)[view]
    peaks = np.flatnonzero(_marked(ends, mask.size))
    number = np.zeros(mask.size + 1, np.uint32)
    number[peaks] = np.arange(1, len(peaks) + 1, dtype=np.uint32)
    numbers = number[ends]  # -1, outside the mask, is the last entry
    core = tuple(slice(0, b - a) for a, b in zip(block.start, block.stop, strict=True))
    labels = np.ascontiguousarray(numbers[core])
    voxels, moment, width = _measure(labels, np.ascontiguousarray(distance[view][core]), len(peaks), block.start)
    places = np.unravel_index(peaks, shape)
    passes = _passes(numbers, height[view], distance[view], labels.shape)
    table = BasinTable(
        peak=np.ravel_multi_index(tuple(p + o for p, o in zip(places, seen.start, strict=True)), block.shape),
        left=_on_rim(places, seen),
        height=height.ravel()[peaks],
        width=width,
        voxels=voxels,
        moment=moment,
        **passes,
    )
    return labels, table


def _goes_on(seen: Block) -> np.ndarray:
    """For each axis whether the volume goes on before and after what is seen."""
    return np.array([[a > 0, b < n] for a, b, n in zip(seen.start, seen.stop, seen.shape, strict=True)])


def _on_rim(places: tuple[np.ndarray, ...], seen: Block) -> np.ndarray:
    """Which voxels are the last that is seen on a side on which the volume goes on."""
    rim = np.zeros(len(places[0]), bool)
    for place, start, stop, n in zip(places, seen.start, seen.stop, seen.shape, strict=True):
        if start > 0:
            rim |= place == 0
        if stop < n:
            rim |= place == stop - start - 1
    return rim


def _marked(ends: np.ndarray, size: int) -> np.ndarray:
    marked = np.zeros(size + 1, bool)
    marked[ends] = True
    return marked[:-1]


@njit(parallel=True, cache=True)
def _climb(height, distance, mask, goes_on):
    """The neighbour that each voxel of the mask steps to, as a flat position; itself at a peak, -1 outside."""
    depth, rows, columns = height.shape
    step = np.empty(height.size, np.int64)
    for z in prange(depth):
        for y in range(rows):
            for x in range(columns):
                here = (z * rows + y) * columns + x
                if not mask[z, y, x]:
                    step[here] = -1
                    continue
                step[here] = here
                if (
                    (goes_on[0, 0] and z == 0)
                    or (goes_on[0, 1] and z == depth - 1)
                    or (goes_on[1, 0] and y == 0)
                    or (goes_on[1, 1] and y == rows - 1)
                    or (goes_on[2, 0] and x == 0)
                    or (goes_on[2, 1] and x == columns - 1)
                ):
                    continue
                best, far = height[z, y, x], distance[z, y, x]
                for k in range(6):
                    # In the order of the volume, so that of equals the last is taken.
                    dz = -1 if k == 0 else (1 if k == 5 else 0)
                    dy = -1 if k == 1 else (1 if k == 4 else 0)
                    dx = -1 if k == 2 else (1 if k == 3 else 0)
                    a, b, c = z + dz, y + dy, x + dx
                    if a < 0 or b < 0 or c < 0 or a >= depth or b >= rows or c >= columns or not mask[a, b, c]:
                        continue
                    there = (a * rows + b) * columns + c
                    other, away = height[a, b, c], distance[a, b, c]
                    higher = other > best or (other == best and away > far)
                    if higher or (other == best and away == far and there > step[here]):
                        best, far, step[here] = other, away, there
    return step


@njit(cache=True)
def _follow(step):
    """Turns steps into ends, in place."""
    for start in range(step.size):
        if step[start] < 0:
            continue
        end = start
        while step[end] != end:
            end = step[end]
        here = start
        while step[here] != end:
            after = step[here]
            step[here] = end
            here = after


@njit(cache=True)
def _measure(labels, distance, count, start):
    voxels = np.zeros(count, np.int64)
    moment = np.zeros((count, 3), np.int64)
    width = np.zeros(count, np.float32)
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                row = np.int64(labels[z, y, x]) - 1
                if row >= 0:
                    voxels[row] += 1
                    moment[row, 0] += z + start[0]
                    moment[row, 1] += y + start[1]
                    moment[row, 2] += x + start[2]
                    width[row] = max(width[row], distance[z, y, x])
    return voxels, moment, width


def _passes(
    labels: np.ndarray, height: np.ndarray, distance: np.ndarray, core: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Passes between voxels of the core and their neighbours one further along each axis."""
    pairs, heights, widths = _borders(
        labels, np.ascontiguousarray(height), np.ascontiguousarray(distance), np.array(core)
    )
    keys, (height_of, width_of) = highest(pairs, heights, widths)
    first, second = (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return {"first": first - 1, "second": second - 1, "pass_height": height_of, "pass_width": width_of}


def highest(keys: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The largest of each of some values for every key, the keys rising."""
    if not len(keys):
        return keys, list(values)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], [np.maximum.reduceat(value[order], starts) for value in values]


@njit(cache=True)
def _borders(labels, height, distance, core):
    """Every two face-adjacent voxels of different basins, of which the first lies in the core."""
    depth, rows, columns = labels.shape
    count = 0
    pairs, heights, widths = np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0, np.float32)
    for fill in range(2):  # counted first
        if fill == 1:
            pairs = np.empty(count, np.uint64)
            heights, widths = np.empty(count, np.float32), np.empty(count, np.float32)
            count = 0
        for z in range(core[0]):
            for y in range(core[1]):
                for x in range(core[2]):
                    one = labels[z, y, x]
                    if one == 0:
                        continue
                    for axis in range(3):
                        a = z + 1 if axis == 0 else z
                        b = y + 1 if axis == 1 else y
                        c = x + 1 if axis == 2 else x
                        if a >= depth or b >= rows or c >= columns:
                            continue
                        two = labels[a, b, c]
                        if two == 0 or two == one:
                            continue
                        if fill == 1:
                            low, high = np.uint64(min(one, two)), np.uint64(max(one, two))
                            pairs[count] = (low << np.uint64(32)) | high
                            heights[count] = min(height[z, y, x], height[a, b, c])
                            widths[count] = min(distance[z, y, x], distance[a, b, c])
                        count += 1
    return pairs, heights, widths
