"""Figures of one section and of two neighbouring ones, on the 8-bit grey scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from scipy import fft, stats

REDUCED_PX = 512
"""Longest side of the reduced section on which shifts and spectra are computed."""
SMALLEST_PX = 32
"""Shortest side of a reduced section whose spectrum says anything."""
SMOOTHING_SIGMA_PX = 2.0
"""Gaussian that parts structure from noise."""
BLANK_DEVIATION = 1.0
"""Standard deviation in grey levels below which a section is blank."""
STRIPE_BAND = (0.02, 0.35)
"""Spatial frequencies, in cycles a reduced pixel, in which stripes are looked for."""
SHIFT_BAND = (0.01, 0.12)
"""Spatial frequencies that tell shifts: slower ones are shading, faster ones mostly noise."""


@dataclass(frozen=True)
class SectionFigures:
    """What one section shows by itself, and what a comparison with the next one needs."""

    mean: float
    deviation: float
    snr: float
    stripes: tuple[float, float]
    """Energy of vertical and of horizontal stripes over that of all directions."""
    reduced: np.ndarray
    spectrum: np.ndarray
    """Half spectrum of the reduced section under a Hann window."""
    factor: int
    """Native pixels along the edge of a reduced one."""

    @property
    def blank(self) -> bool:
        """Constant, or nearly so."""
        return self.deviation < BLANK_DEVIATION


class Step(NamedTuple):
    """What happens from one section to the next (see :func:`compare`)."""

    shift_y: float
    shift_x: float
    change: float
    brightening: float


def measure_section(section: np.ndarray) -> SectionFigures:
    """Measure one section.

    Parameters
    ----------
    section : ndarray of uint8, shape (y, x)
    """
    mean, deviation = (float(v.item()) for v in cv2.meanStdDev(section))
    reduced, factor = _reduced(section)
    # Without the window the jump between opposite borders would itself be a cross of stripes.
    spectrum = fft.rfft2((reduced - reduced.mean()) * _window(reduced.shape))
    if deviation < BLANK_DEVIATION:
        return SectionFigures(mean, deviation, 0.0, (1.0, 1.0), reduced, spectrum, factor)
    grey = section.astype(np.float32)
    smooth = cv2.GaussianBlur(grey, (0, 0), SMOOTHING_SIGMA_PX)
    noise = float(cv2.meanStdDev(grey - smooth)[1].item())
    snr = float(cv2.meanStdDev(smooth)[1].item()) / max(noise, 1e-3)
    return SectionFigures(mean, deviation, snr, stripe_energy(spectrum, reduced.shape), reduced, spectrum, factor)


def stripe_energy(spectrum: np.ndarray, shape: tuple[int, int]) -> tuple[float, float]:
    """Energy of vertical and horizontal stripes (curtains, scan lines), relative to the other directions.

    Parameters
    ----------
    spectrum : ndarray of complex64, shape (y, x // 2 + 1)
        Half spectrum of a section.
    shape : tuple of int
        Rows and columns of that section.

    Returns
    -------
    tuple of float
        For stripes along y and along x: power of the spectrum on the axis that such stripes occupy over the mean power
        at the same frequency, averaged over frequencies. About 1 where no direction is preferred; 1 for sections too
        small to tell.
    """
    if min(shape) < SMALLEST_PX:
        return 1.0, 1.0
    power = np.abs(spectrum) ** 2
    rings, sizes = _rings(shape)
    side, (height, width) = min(shape), shape
    mean_power = np.maximum(np.bincount(rings, power.ravel(), minlength=len(sizes)) / sizes, 1e-12)
    columns, rows = (np.arange(int(STRIPE_BAND[0] * n) + 2, int(STRIPE_BAND[1] * n)) for n in (width, height))
    along_y = power[[-1, 0, 1]][:, columns].mean(axis=0) / mean_power[_ring(columns / width, side)]
    # The spectrum holds no negative frequencies of x; those of y mirror them.
    along_x = (power[rows, 0] + power[rows, 1] + power[-rows, 1]) / 3 / mean_power[_ring(rows / height, side)]
    return float(along_y.mean()), float(along_x.mean())


def compare(previous: SectionFigures, current: SectionFigures) -> Step:
    """Shift, change and brightening from one section to the next.

    The shift is the peak of a correlation that keeps the frequencies of `SHIFT_BAND` and takes the square root of their
    amplitudes: full phase correlation follows the noise wherever structure is smooth.

    Returns
    -------
    shift_y, shift_x : float
        Displacement in native pixels; a parabola through the peak gives its fraction. The window draws shifts of a
        tenth of the section and more towards zero by about a tenth of their length.
    change : float
        1 minus the correlation of the two, once aligned to the pixel; 0 for equal sections.
    brightening : float
        Mean of the middle half of the differences of aligned pixels, in grey levels: what comes and goes from section
        to section lies in the tails and does not count.
    """
    a, b = previous.reduced, current.reduced
    cross = current.spectrum * np.conj(previous.spectrum)
    cross *= _band(a.shape) / np.sqrt(np.maximum(np.abs(cross), 1e-12))
    surface = fft.irfft2(cross, s=a.shape)
    peak = np.unravel_index(int(surface.argmax()), surface.shape)
    dy, dx = (_signed(_refined(surface, peak, axis), a.shape[axis]) for axis in (0, 1))
    y, x = round(dy), round(dx)
    here = a[max(0, -y) : a.shape[0] - max(0, y), max(0, -x) : a.shape[1] - max(0, x)]
    there = b[max(0, y) : b.shape[0] + min(0, y), max(0, x) : b.shape[1] + min(0, x)]
    brightening = float(stats.trim_mean(there - here, 0.25, axis=None))
    return Step(dy * previous.factor, dx * previous.factor, 1.0 - _correlation(here, there), brightening)


def _refined(surface: np.ndarray, peak: tuple[np.intp, ...], axis: int) -> float:
    """Place of the peak along one axis, by the parabola through it and its neighbours."""
    place = [int(p) for p in peak]
    size = surface.shape[axis]
    middle = place[axis]
    before, at, after = (
        float(surface[tuple(place[:axis] + [(middle + d) % size] + place[axis + 1 :])]) for d in (-1, 0, 1)
    )
    bend = before - 2 * at + after
    return middle + (0.5 * (before - after) / bend if bend < 0 else 0.0)


def _signed(place: float, size: int) -> float:
    return place - size if place > size / 2 else place


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum(dtype=np.float64) * (b * b).sum(dtype=np.float64)))
    return float((a * b).sum(dtype=np.float64)) / norm if norm > 0 else 0.0


def _reduced(section: np.ndarray) -> tuple[np.ndarray, int]:
    factor = max(1, -(-max(section.shape) // REDUCED_PX))
    if factor == 1 or min(section.shape) < 2 * factor:
        return section.astype(np.float32), 1
    height, width = (n // factor for n in section.shape)
    whole = section[: height * factor, : width * factor].astype(np.float32)
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), factor


def _frequencies(shape: tuple[int, int]) -> np.ndarray:
    """Radial frequency of each value of a half spectrum, in cycles a pixel."""
    return np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])


def _ring(frequency: np.ndarray, side: int) -> np.ndarray:
    return np.round(frequency * side).astype(np.int64)


@lru_cache(maxsize=2)
def _window(shape: tuple[int, int]) -> np.ndarray:
    return np.outer(*(np.hanning(n + 2)[1:-1] for n in shape)).astype(np.float32)


@lru_cache(maxsize=2)
def _band(shape: tuple[int, int]) -> np.ndarray:
    frequency = _frequencies(shape)
    low, high = SHIFT_BAND
    return (np.exp(-0.5 * (frequency / high) ** 2) * (1 - np.exp(-0.5 * (frequency / low) ** 2))).astype(np.float32)


@lru_cache(maxsize=2)
def _rings(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Ring of each value of a half spectrum, and how many values each ring has."""
    rings = _ring(_frequencies(shape), min(shape)).ravel()
    return rings, np.maximum(np.bincount(rings), 1)
