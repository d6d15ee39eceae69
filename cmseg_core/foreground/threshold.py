"""The classical baseline: a threshold on the smoothed grey levels, a few sections at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

Read = Callable[[int, int], np.ndarray]
"""Gives the sections from start up to, not including, stop: uint8 (z, y, x)."""
SLAB = 64
"""Sections worked on at a time."""
SMOOTHING = 1.5
"""Standard deviation of the Gaussian that smooths the grey levels, in voxels."""
EDGE_SCALE = 1.0
"""Standard deviation of the Gaussian in the gradient of the smoothed grey levels, in voxels."""
TRUNCATE = 4.0
"""Standard deviations after which SciPy cuts a Gaussian off."""
CORE_DEPTH = 2
"""Layers of voxels taken off a phase before its roughness is measured: the border between phases is no texture."""
PARTS = 8
"""Bins of the histogram in one grey level."""
TEXTURE_PARTS = 64
"""Steps in which roughness is counted, in one grey level: sums of whole numbers come out the same in any order."""


@dataclass(frozen=True)
class Threshold:
    """What tells cells from background in one volume.

    Attributes
    ----------
    level : float or None
        Grey level that parts the two phases of the smoothed volume. None where the volume has no contrast: then
        nothing is a cell.
    bright : bool
        Whether cells are the brighter phase.
    """

    level: float | None
    bright: bool


def threshold_foreground(volume: np.ndarray, cell_diameter_px: int) -> np.ndarray:
    """Cells against background in a volume that is in memory: `find_threshold`, then `threshold_slab`.

    Parameters
    ----------
    volume : ndarray of uint8, shape (z, y, x)
        On the working grid.
    cell_diameter_px : int
        Diameter of a cell in voxels.

    Returns
    -------
    ndarray of uint8, shape (z, y, x)
        255 in cells, 0 elsewhere.
    """
    out = np.empty(volume.shape, np.uint8)
    z, y, x = volume.shape

    def read(start: int, stop: int) -> np.ndarray:
        return volume[start:stop]

    threshold = find_threshold(read, (z, y, x))
    for start, stop in _slabs(z, SLAB):
        out[start:stop] = threshold_slab(read, (z, y, x), start, stop, threshold, cell_diameter_px)
    return out


def find_threshold(read: Read, shape: tuple[int, int, int], depth: int = SLAB) -> Threshold:
    """Find the grey level that parts cells from background, and on which side of it the cells are.

    The level is Otsu's [1]_ for the smoothed volume. The background is taken to be the phase that is smoother: resin
    has less texture than cells, whichever of the two is brighter. The volume is read twice.

    Parameters
    ----------
    read : callable
        ``read(start, stop)`` gives sections as uint8 (z, y, x). All-black sections, lost by the microscope, do not
        count.
    shape : tuple of int
        Of the volume.
    depth : int
        Sections worked on at a time, besides ten more at either side. The result does not depend on it.

    Returns
    -------
    Threshold

    References
    ----------
    .. [1] N. Otsu, A threshold selection method from gray-level histograms, IEEE Trans. Systems, Man, and Cybernetics
           9 (1979) 62-66.
    """
    slabs = _slabs(shape[0], depth)
    counts = np.zeros(255 * PARTS + 1, np.int64)
    for start, stop in slabs:
        counts += _histogram(read, shape[0], start, stop)
    level = _otsu(counts)
    if level is None:
        return Threshold(None, bright=False)
    sums = np.array([_core_roughness(read, shape[0], *slab, level) for slab in slabs])
    dark, bright = (_mean(total, voxels) for total, voxels in sums.sum(axis=0).tolist())
    return Threshold(level, bright=bright > dark)


def threshold_slab(
    read: Read, shape: tuple[int, int, int], start: int, stop: int, threshold: Threshold, cell_diameter_px: int
) -> np.ndarray:
    """Cells in sections `start` up to `stop` of a volume, as if the whole volume had been worked on at once.

    Specks and bridges one or two voxels thin are removed, and holes smaller than a cell are closed section by
    section. One or two all-black sections between others are filled in from them; inside of more there are no cells.

    Parameters
    ----------
    read : callable
        ``read(first, last)`` gives sections as uint8 (z, y, x); called once, with eight more sections at either side
        where there are as many.
    shape : tuple of int
        Of the whole volume.
    start, stop : int
        Sections wanted.
    threshold : Threshold
        Of the whole volume.
    cell_diameter_px : int
        Diameter of a cell in voxels.

    Returns
    -------
    ndarray of uint8, shape (stop - start, y, x)
        255 in cells, 0 elsewhere.
    """
    if threshold.level is None:
        return np.zeros((stop - start, *shape[1:]), np.uint8)
    first, last, inside = _widened(start, stop, 2, shape[0])
    slab = _smooth(read, shape[0], first, last)
    bright = slab.smooth > threshold.level
    cells = _opened(bright if threshold.bright else ~bright)
    # Where more than half of the smoothing kernel lies on lost sections, nothing is known.
    cells[slab.known_share < 0.5] = False
    largest_hole = 0.25 * np.pi * cell_diameter_px**2
    return np.stack([_closed(section, largest_hole) for section in cells[inside]])


@dataclass(frozen=True, eq=False)
class _Slab:
    """Sections of a volume beside their smoothed grey levels.

    Attributes
    ----------
    grey : ndarray of uint8, shape (z, y, x)
    smooth : ndarray of float32, shape (z, y, x)
    known_share : ndarray of float64, shape (z,)
        Share of the smoothing kernel that lies on sections that are not black.
    """

    grey: np.ndarray
    smooth: np.ndarray
    known_share: np.ndarray

    @property
    def known(self) -> np.ndarray:
        return _not_black(self.grey)


def _slabs(size: int, depth: int) -> list[tuple[int, int]]:
    return [(start, min(start + depth, size)) for start in range(0, size, depth)]


def _widened(start: int, stop: int, halo: int, size: int) -> tuple[int, int, slice]:
    """First and last section with `halo` more at either side where there are, and where the wanted ones lie in them."""
    first, last = max(0, start - halo), min(size, stop + halo)
    return first, last, slice(start - first, stop - first)


def _radius(sigma: float) -> int:
    return int(TRUNCATE * sigma + 0.5)


def _not_black(grey: np.ndarray) -> np.ndarray:
    return grey.max(axis=(1, 2)) > 0


def _smooth(read: Read, size: int, start: int, stop: int) -> _Slab:
    """Smooth sections of a volume of `size` sections; black sections count for nothing."""
    first, last, inside = _widened(start, stop, _radius(SMOOTHING), size)
    grey = read(first, last)
    known = _not_black(grey).astype(np.float64)
    share = ndimage.gaussian_filter1d(known, SMOOTHING, truncate=TRUNCATE)[inside]
    along_z = ndimage.gaussian_filter1d(grey, SMOOTHING, axis=0, output=np.float32, truncate=TRUNCATE)[inside]
    smooth = ndimage.gaussian_filter(along_z, (0, SMOOTHING, SMOOTHING), truncate=TRUNCATE)
    for section, part in zip(smooth, share, strict=True):
        # 1 but for rounding where no section is black.
        if 0 < part < 1 - 1e-9:
            section /= np.float32(part)
    return _Slab(grey[inside], smooth, share)


def _histogram(read: Read, size: int, start: int, stop: int) -> np.ndarray:
    """How often each smoothed grey level, in steps of ``1 / PARTS``, occurs in sections that are not black."""
    slab = _smooth(read, size, start, stop)
    bins = np.rint(slab.smooth[slab.known] * PARTS).astype(np.uint16)
    return np.bincount(bins.reshape(-1), minlength=255 * PARTS + 1)


def _otsu(counts: np.ndarray) -> float | None:
    """Otsu's level, between two bins; None where the grey levels lie closer together than one."""
    filled = np.flatnonzero(counts)
    if not filled.size or filled[-1] - filled[0] < PARTS:
        return None
    centres = np.arange(counts.size) / PARTS
    return float(threshold_otsu(hist=(counts, centres))) + 0.5 / PARTS


def _core_roughness(read: Read, size: int, start: int, stop: int, level: float) -> list[tuple[int, int]]:
    """Roughness in the cores of the dark and of the bright phase: sum and number of voxels of each."""
    first, last, inside = _widened(start, stop, max(_radius(EDGE_SCALE), CORE_DEPTH), size)
    slab = _smooth(read, size, first, last)
    edges = ndimage.gaussian_gradient_magnitude(slab.smooth, EDGE_SCALE, truncate=TRUNCATE)[inside]
    texture = np.abs(slab.grey[inside] - slab.smooth[inside])
    rough = np.rint((texture + edges) * TEXTURE_PARTS).astype(np.int32)
    bright, known = slab.smooth > level, slab.known[inside]
    cores = (rough[known][_eroded(phase, CORE_DEPTH)[inside][known]] for phase in (~bright, bright))
    return [(int(core.sum(dtype=np.int64)), core.size) for core in cores]


def _mean(total: int, voxels: int) -> float:
    return total / voxels if voxels else np.inf


def _eroded(phase: np.ndarray, layers: int = 1) -> np.ndarray:
    """Take layers off a phase, by the six neighbours; beyond the border of the volume everything is of the phase."""
    for _ in range(layers):
        out = phase.copy()
        for axis in range(3):
            source, target = np.moveaxis(phase, axis, 0), np.moveaxis(out, axis, 0)
            target[1:] &= source[:-1]
            target[:-1] &= source[1:]
        phase = out
    return phase


def _opened(phase: np.ndarray) -> np.ndarray:
    return ~_eroded(~_eroded(phase))


def _closed(section: np.ndarray, largest_hole: float) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~section).view(np.uint8), connectivity=4)
    left, top, width, height, area = stats.T
    rows, columns = section.shape
    inner = (left > 0) & (top > 0) & (left + width < columns) & (top + height < rows)
    filled = inner & (area < largest_hole)
    filled[0] = True  # the section's own cells
    return filled[labels].astype(np.uint8) * 255
