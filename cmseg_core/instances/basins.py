"""Basins of a landscape and the passes between them.

A *landscape* is high inside cells (a distance map in nanometres) and low at their borders. Every local maximum floods
one basin; the highest point on the border of two basins is the *pass* between them. The basins and passes hold all
that h-maxima (Vincent and Soille's dynamics) need, so markers of any depth cost one flood and no reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import bioimage_cpp
import cc3d
import numpy as np
from scipy import ndimage

_LEAST_SIGMA_VOXELS = 0.25
"""A narrower Gaussian is the identity on the grid."""


@dataclass(frozen=True)
class Pass:
    """The highest point on the border of two basins."""

    height: float
    first: int
    second: int


@dataclass(frozen=True)
class Peaks:
    """One peak a basin; entry 0 is unused.

    Attributes
    ----------
    height : ndarray of float32, shape (basins + 1,)
        Landscape at the peak, in the landscape's unit.
    position : ndarray of float64, shape (basins + 1, 3)
        ZYX in voxels.
    """

    height: np.ndarray
    position: np.ndarray


def smooth(landscape: np.ndarray, sigma_nm: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """Gaussian smoothing by a physical width.

    Parameters
    ----------
    landscape : ndarray of float32, shape (z, y, x)
    sigma_nm : float
        Standard deviation in nanometres; axes on which it is below a quarter of a voxel are left alone.
    spacing : tuple of float
        Voxel edges z, y, x in nanometres.

    Returns
    -------
    ndarray of float32, shape (z, y, x)
    """
    sigmas = [sigma_nm / edge if sigma_nm / edge >= _LEAST_SIGMA_VOXELS else 0.0 for edge in spacing]
    if not any(sigmas):
        return landscape
    return ndimage.gaussian_filter(landscape, sigmas, mode="nearest", truncate=3.0)


def find_markers(landscape: np.ndarray, factors: tuple[int, int, int]) -> tuple[np.ndarray, Peaks]:
    """Local maxima of a landscape, found on a grid reduced by block maxima.

    Flat tops may give several markers; the pass between them is as high as they are, so merging joins them.

    Parameters
    ----------
    landscape : ndarray of float32, shape (z, y, x)
        Zero outside the mask.
    factors : tuple of int
        Edge of a block in voxels.

    Returns
    -------
    markers : ndarray of uint32, shape (z, y, x)
        Ids 1..n, each at the highest voxels of its blocks.
    peaks : Peaks
    """
    tops, where = _block_maxima(landscape, factors)
    is_top = (tops == ndimage.maximum_filter(tops, size=3, mode="nearest")) & (tops > 0)
    ids, count = cc3d.connected_components(is_top, connectivity=26, return_N=True)
    blocks = np.nonzero(is_top)
    marker_ids = ids[blocks].astype(np.uint32)
    voxels = where[blocks]
    markers = np.zeros(landscape.shape, np.uint32)
    markers.ravel()[voxels] = marker_ids
    height = np.zeros(count + 1, np.float32)
    np.maximum.at(height, marker_ids, tops[blocks])
    coordinates = np.unravel_index(voxels, landscape.shape)
    members = np.maximum(np.bincount(marker_ids, minlength=count + 1), 1)
    position = np.stack([np.bincount(marker_ids, axis, count + 1) / members for axis in coordinates], axis=1)
    return markers, Peaks(height, position)


def _block_maxima(landscape: np.ndarray, factors: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Largest value of each block, and the flat index of the voxel that holds it (the first on ties)."""
    if factors == (1, 1, 1):
        return landscape, np.arange(landscape.size).reshape(landscape.shape)
    shape = tuple(-(-n // f) for n, f in zip(landscape.shape, factors, strict=True))
    best = np.full(shape, -np.inf, np.float32)
    where = np.zeros(shape, np.int64)
    strides = (landscape.shape[1] * landscape.shape[2], landscape.shape[2], 1)
    for offset in np.ndindex(*factors):
        view = landscape[tuple(slice(o, None, f) for o, f in zip(offset, factors, strict=True))]
        part = tuple(slice(0, n) for n in view.shape)
        flat = sum(
            ((np.arange(n) * f + o) * s).reshape([-1 if i == axis else 1 for i in range(3)])
            for axis, (n, f, o, s) in enumerate(zip(view.shape, factors, offset, strides, strict=True))
        )
        higher = view > best[part]
        np.copyto(best[part], view, where=higher)
        np.copyto(where[part], flat, where=higher)
    return best, where


def flood(landscape: np.ndarray, markers: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Marker watershed, from the peaks down, inside a mask (6-connected).

    Parameters
    ----------
    landscape : ndarray of float32, shape (z, y, x)
    markers : ndarray of uint32, shape (z, y, x)
    mask : ndarray of bool, shape (z, y, x)

    Returns
    -------
    ndarray of uint32, shape (z, y, x)
        Basin of each voxel; 0 outside the mask and where no marker reaches.
    """
    return bioimage_cpp.segmentation.watershed(np.negative(landscape), markers, mask=mask)


def find_passes(landscape: np.ndarray, basins: np.ndarray) -> list[Pass]:
    """The pass of every two adjacent basins, highest first.

    The height of a pass is the largest, over face-adjacent voxels on either side of the border, of the lower of the
    two landscape values.

    Parameters
    ----------
    landscape : ndarray of float32, shape (z, y, x)
    basins : ndarray of uint32, shape (z, y, x)

    Returns
    -------
    list of Pass
        Sorted by falling height, then by ids, so that the order never depends on the run.
    """
    keys, heights = [np.empty(0, np.uint64)], [np.empty(0, np.float32)]
    for axis in range(3):
        low = tuple(slice(None, -1) if i == axis else slice(None) for i in range(3))
        high = tuple(slice(1, None) if i == axis else slice(None) for i in range(3))
        border = np.nonzero((basins[low] != basins[high]) & (basins[low] > 0) & (basins[high] > 0))
        one, two = basins[low][border].astype(np.uint64), basins[high][border].astype(np.uint64)
        keys.append((np.minimum(one, two) << np.uint64(32)) | np.maximum(one, two))
        heights.append(np.minimum(landscape[low][border], landscape[high][border]))
    pairs, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    best = np.full(len(pairs), -np.inf, np.float32)
    np.maximum.at(best, inverse, np.concatenate(heights))
    passes = [Pass(float(h), int(k >> np.uint64(32)), int(k & np.uint64(0xFFFFFFFF)))
              for h, k in zip(best, pairs, strict=True)]  # fmt: skip
    return sorted(passes, key=lambda p: (-p.height, p.first, p.second))


def merge_basins(peaks: Peaks, passes: list[Pass], are_one: Callable[[float, int, int], bool]) -> np.ndarray:
    """Join basins over their passes, highest pass first.

    Parameters
    ----------
    peaks : Peaks
    passes : list of Pass
        From :func:`find_passes`.
    are_one : callable
        Given the height of a pass and the basins that hold the highest peaks on its two sides (the lower first), says
        whether the two sides are one cell.

    Returns
    -------
    ndarray of uint32, shape (basins + 1,)
        For each basin the basin with the highest peak of the group that it joined.
    """
    parent = np.arange(len(peaks.height), dtype=np.uint32)

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = int(parent[node])
        return node

    for step in passes:
        sides = sorted((root(step.first), root(step.second)), key=lambda side: (peaks.height[side], -side))
        lower, higher = sides
        if lower != higher and are_one(step.height, lower, higher):
            parent[lower] = higher
    return np.array([root(node) for node in range(len(parent))], dtype=np.uint32)
