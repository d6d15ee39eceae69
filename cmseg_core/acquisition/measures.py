"""Figures of one section and of two neighbouring ones, on the 8-bit grey scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

REDUCED_PX = 512
"""Longest side of the reduced section on which shifts and spectra are computed."""
SMOOTHING_SIGMA_PX = 2.0
"""Gaussian that parts structure from noise."""
BLANK_DEVIATION = 1.0
"""Standard deviation in grey levels below which a section is blank."""
STRIPE_BAND = (0.04, 0.7)
"""Spatial frequencies, relative to the highest, in which stripes are looked for."""


@dataclass(frozen=True)
class SectionFigures:
    """What one section shows by itself."""

    mean: float
    deviation: float
    snr: float
    stripes: tuple[float, float]
    """Energy of vertical and of horizontal stripes over that of all directions."""
    reduced: np.ndarray
    factor: int
    """Native pixels along the edge of a reduced one."""

    @property
    def blank(self) -> bool:
        """Constant, or nearly so."""
        return self.deviation < BLANK_DEVIATION


def measure_section(section: np.ndarray) -> SectionFigures:
    """Measure one section.

    Parameters
    ----------
    section : ndarray of uint8, shape (y, x)
    """
    mean, deviation = (float(v.item()) for v in cv2.meanStdDev(section))
    reduced, factor = _reduced(section)
    if deviation < BLANK_DEVIATION:
        return SectionFigures(mean, deviation, 0.0, (1.0, 1.0), reduced, factor)
    grey = section.astype(np.float32)
    smooth = cv2.GaussianBlur(grey, (0, 0), SMOOTHING_SIGMA_PX)
    noise = float(cv2.meanStdDev(grey - smooth)[1].item())
    snr = float(cv2.meanStdDev(smooth)[1].item()) / max(noise, 1e-3)
    return SectionFigures(mean, deviation, snr, stripe_energy(reduced), reduced, factor)


def stripe_energy(section: np.ndarray) -> tuple[float, float]:
    """Energy of vertical and horizontal stripes (curtains, scan lines), relative to the other directions.

    Parameters
    ----------
    section : ndarray of float32, shape (y, x)

    Returns
    -------
    tuple of float
        For stripes along y and along x: power of the spectrum on the axis that such stripes occupy over the mean power
        at the same frequency, averaged over frequencies; about 1 where no direction is preferred, 1 for sections too
        small to tell.
    """
    side = min(section.shape)
    if side < 32:
        return 1.0, 1.0
    top, left = ((n - side) // 2 for n in section.shape)
    square = section[top : top + side, left : left + side]
    window = _window(side)
    spectrum = np.fft.rfft2((square - square.mean()) * window)
    power = spectrum.real**2 + spectrum.imag**2
    rings, sizes, highest = _rings(side)
    mean_power = np.bincount(rings, power.ravel(), minlength=len(sizes)) / sizes
    centre = side // 2
    k = np.arange(2 + int(STRIPE_BAND[0] * centre), highest)
    reference = np.maximum(mean_power[k], 1e-12)
    vertical = power[np.ix_([-1, 0, 1], k)].mean(axis=0) / reference
    horizontal = power[k][:, :2].mean(axis=1) / reference
    return float(vertical.mean()), float(horizontal.mean())


def compare(previous: SectionFigures, current: SectionFigures) -> tuple[float, float, float]:
    """Shift and change from one section to the next.

    Returns
    -------
    shift_y, shift_x : float
        Displacement in native pixels by phase correlation.
    change : float
        1 minus the correlation of the two, once aligned to the pixel; 0 for equal sections.
    """
    a, b = previous.reduced, current.reduced
    # OpenCV applies the window in place where the size needs no padding, and both images are needed again.
    (dx, dy), _ = cv2.phaseCorrelate(a.copy(), b.copy(), _hanning(a.shape))
    y, x = (int(np.clip(round(d), -n // 2, n // 2)) for d, n in zip((dy, dx), a.shape, strict=True))
    here = a[max(0, -y) : a.shape[0] - max(0, y), max(0, -x) : a.shape[1] - max(0, x)]
    there = b[max(0, y) : b.shape[0] + min(0, y), max(0, x) : b.shape[1] + min(0, x)]
    return dy * previous.factor, dx * previous.factor, 1.0 - _correlation(here, there)


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


@lru_cache(maxsize=4)
def _hanning(shape: tuple[int, int]) -> np.ndarray:
    return np.outer(np.hanning(shape[0]), np.hanning(shape[1])).astype(np.float32)


@lru_cache(maxsize=2)
def _window(side: int) -> np.ndarray:
    # Without it the jump between opposite borders would itself be a cross of stripes.
    return _hanning((side, side))


@lru_cache(maxsize=2)
def _rings(side: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Rounded frequency of each value of a half spectrum, how many share it, and the end of the stripe band."""
    rows = np.fft.fftfreq(side, 1 / side)[:, None]
    radius = np.hypot(rows, np.arange(side // 2 + 1)[None]).round().astype(np.int64).ravel()
    return radius, np.maximum(np.bincount(radius), 1), int(STRIPE_BAND[1] * (side // 2))
