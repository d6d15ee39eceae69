"""How a simulated acquisition looks: grey levels, membranes, texture, optics, noise and defects."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields

import numpy as np

DEFECTS = ("noise", "curtaining", "charging", "drift", "jitter", "missing")
"""Defects that can be switched on by name."""


@dataclass(frozen=True)
class Look:
    """Appearance of one acquisition. Grey levels are fractions of the 8-bit range, lengths are nm."""

    resin: float = 0.72
    cytoplasm: float = 0.55
    plastid: float = 0.42
    mitochondrion: float = 0.47
    peroxisome: float = 0.44
    nucleus: float = 0.60
    starch: float = 0.72
    cell_spread: float = 0.02
    """Standard deviation of the grey offset between cells."""
    membrane: float = 0.20
    """Depth of the dark line of a cell's membrane."""
    organelle_membrane: float = 0.14
    membrane_nm: float = 14.0
    texture: float = 0.03
    grain_nm: float = 45.0
    lamella: float = 0.08
    """Contrast of the plastid's lamellae and of the cristae."""
    lamella_nm: float = 70.0
    resin_texture: float = 0.01
    light: float = 0.03
    """Amplitude of uneven light."""
    light_nm: float = 4000.0
    blur_px: float = 0.6
    noise: float = 0.05
    """Standard deviation of the noise at mid grey; its variance grows with the signal, as shot noise does."""
    inverted: bool = False
    debris_per_um3: float = 0.0
    debris: float = 0.5
    """Grey level of debris."""
    curtaining: float = 0.0
    charging: float = 0.0
    drift: float = 0.0
    jitter_nm: float = 0.0
    missing_fraction: float = 0.0
    defects: tuple[str, ...] = field(default=())

    def vector(self) -> np.ndarray:
        """The numbers that the kernel needs, in the order of :data:`KERNEL_FIELDS`."""
        return np.array([getattr(self, name) for name in KERNEL_FIELDS], dtype=np.float64)


KERNEL_FIELDS = tuple(f.name for f in fields(Look))[:18]
assert KERNEL_FIELDS[-1] == "light_nm"


def draw_look(rng: np.random.Generator, *, hard: bool = False, defects: Collection[str] = ()) -> Look:
    """Draw an appearance at random over a wide range.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    hard : bool
        Resin as grey as the cytoplasm, cells of different grey, uneven light and debris.
    defects : collection of str
        Names out of :data:`DEFECTS` to switch on strongly.

    Returns
    -------
    Look
    """
    unknown = set(defects) - set(DEFECTS)
    if unknown:
        raise ValueError(f"unknown defect {sorted(unknown)}; known are {', '.join(DEFECTS)}")
    u = rng.uniform
    cytoplasm = u(0.38, 0.66)
    resin = cytoplasm + (u(-0.02, 0.02) if hard else rng.choice([1.0, 1.0, 1.0, -1.0]) * u(0.10, 0.28))
    resin = float(np.clip(resin, 0.12, 0.90))

    def apart(low: float, high: float, lighter: float) -> float:
        sign = 1.0 if u() < lighter else -1.0
        return float(np.clip(cytoplasm + sign * u(low, high), 0.08, 0.94))

    return Look(
        resin=resin,
        cytoplasm=cytoplasm,
        plastid=apart(0.07, 0.22, 0.15),
        mitochondrion=apart(0.05, 0.16, 0.2),
        peroxisome=apart(0.06, 0.18, 0.25),
        nucleus=apart(0.04, 0.14, 0.65),
        starch=float(np.clip(cytoplasm + u(0.08, 0.25), 0.1, 0.95)),
        cell_spread=u(0.04, 0.10) if hard else u(0.0, 0.03),
        membrane=u(0.12, 0.32),
        organelle_membrane=u(0.06, 0.24),
        membrane_nm=u(9.0, 20.0),
        texture=u(0.01, 0.05),
        grain_nm=u(25.0, 80.0),
        lamella=u(0.0, 0.14),
        lamella_nm=u(50.0, 110.0),
        resin_texture=u(0.0, 0.04) if hard else u(0.0, 0.015),
        light=u(0.06, 0.18) if hard else u(0.0, 0.05),
        light_nm=u(2500.0, 6000.0),
        blur_px=u(0.3, 1.1),
        noise=u(0.12, 0.2) if "noise" in defects else (u(0.03, 0.10) if hard else u(0.02, 0.09)),
        inverted=bool(u() < 0.25),
        debris_per_um3=u(0.1, 0.5) if hard else (u(0.0, 0.1) if u() < 0.3 else 0.0),
        debris=float(np.clip(cytoplasm + u(-0.2, 0.1), 0.05, 0.95)),
        curtaining=u(0.08, 0.16) if "curtaining" in defects else u(0.0, 0.03),
        charging=u(0.15, 0.35) if "charging" in defects else 0.0,
        drift=u(0.10, 0.20) if "drift" in defects else u(0.0, 0.02),
        jitter_nm=u(60.0, 120.0) if "jitter" in defects else 0.0,
        missing_fraction=u(0.02, 0.04) if "missing" in defects else 0.0,
        defects=tuple(sorted(defects)),
    )
