"""Anatomy of one *C. merolae* cell as a vector of numbers.

A cell lives in its own frame (u, v, w): u is the axis along which it divides, w points out of the plastid's cup. The
body is a smooth union of two lobes that part as the cycle goes on; organelles follow in the order plastid,
mitochondrion, peroxisome, nucleus (Kousaka et al. 2025, figure 2; Suzuki et al. 1994; Miyagishima & Tanaka 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from cmseg_core.schema import Stage

# How far each structure has parted in each stage: 0 single, 1 two separate ones (the body: two lobes with a neck).
_PARTING: dict[int, dict[str, float]] = {
    1: {"body": 0.00, "plastid": 0.00, "mitochondrion": 0.00, "peroxisome": 0.00, "nucleus": 0.00},
    2: {"body": 0.25, "plastid": 0.45, "mitochondrion": 0.15, "peroxisome": 0.00, "nucleus": 0.00},
    3: {"body": 0.48, "plastid": 1.00, "mitochondrion": 0.45, "peroxisome": 0.25, "nucleus": 0.00},
    4: {"body": 0.70, "plastid": 1.00, "mitochondrion": 1.00, "peroxisome": 1.00, "nucleus": 0.45},
    5: {"body": 1.00, "plastid": 1.00, "mitochondrion": 1.00, "peroxisome": 1.00, "nucleus": 1.00},
}

# Layout of the parameter vector, shared with the kernel in field.py.
CENTRE = slice(0, 3)
ROTATION = slice(3, 12)
BODY = slice(12, 18)  # lobe radii u, v, w; half distance of the lobes; smoothness of their union; reach
WARP = slice(18, 25)  # amplitude, three wave numbers, three phases
PLASTID = slice(25, 34)  # margin; hollow: w, radii u, v, w; half distance; constriction depth, width; rim height
MITOCHONDRION = slice(34, 43)  # v, w, radii u, v, w; half distance; constriction depth, width; bend
PEROXISOME = slice(43, 51)  # v, w, radii u, v, w; half distance; constriction depth, width
NUCLEUS = slice(51, 60)  # as the peroxisome, then the radius of the nucleolus
GREY = 60  # grey offset of this cell, a multiple of the look's spread
STARCH = slice(61, 85)  # six grains: u, v, w, radius
SIZE = 85


@dataclass(frozen=True)
class CellAnatomy:
    """One simulated cell.

    Attributes
    ----------
    stage : int
        Cell-cycle stage, 1 to 5.
    parameters : ndarray of float64, shape (SIZE,)
        Lengths in nanometres, laid out by the slices of this module; the centre is ZYX.
    """

    stage: Stage
    parameters: np.ndarray

    @property
    def reach(self) -> float:
        """Radius in nm of a sphere about the centre that holds the cell."""
        return float(self.parameters[BODY][5])

    def lobes(self) -> np.ndarray:
        """Centres (ZYX, nm) of the two lobes, shape (2, 3); equal in stage 1."""
        rotation = self.parameters[ROTATION].reshape(3, 3)
        offset = rotation.T @ np.array([self.parameters[BODY][3], 0.0, 0.0])
        return np.stack([self.parameters[CENTRE] - offset, self.parameters[CENTRE] + offset])

    @property
    def lobe_radius(self) -> float:
        """Mean radius of a lobe in nm."""
        return float(self.parameters[BODY][:3].mean())

    def moved(self, centre: np.ndarray) -> CellAnatomy:
        """The same cell at another centre (ZYX, nm)."""
        parameters = self.parameters.copy()
        parameters[CENTRE] = centre
        return CellAnatomy(self.stage, parameters)


def draw_cell(
    rng: np.random.Generator, stage: Stage, diameter_nm: tuple[float, float] = (1500.0, 2000.0)
) -> CellAnatomy:
    """Draw the anatomy of a cell at the origin.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    stage : int
        Cell-cycle stage, 1 to 5.
    diameter_nm : tuple of float
        Range of the diameter of an undivided cell; 1.5 to 2.0 um in *C. merolae*.

    Returns
    -------
    CellAnatomy
    """
    parting = {
        name: float(np.clip(t + rng.uniform(-0.07, 0.07), 0, 1)) if 0 < t < 1 else t
        for name, t in _PARTING[stage].items()
    }
    radius = rng.uniform(*diameter_nm) / 2
    p = np.zeros(SIZE)
    p[ROTATION] = Rotation.random(random_state=rng).as_matrix().ravel()

    lobe = radius * (1 - 0.20 * parting["body"])
    half = lobe * 0.82 * parting["body"]
    axes = lobe * rng.uniform(0.90, 1.10, 3)
    smooth = radius * (0.30 - 0.18 * parting["body"])
    warp = radius * rng.uniform(0.0, 0.07)
    p[BODY] = *axes, half, smooth, axes.max() + half + warp * 1.8 + smooth / 4
    p[WARP] = warp, *(rng.uniform(1.2, 3.0, 3) / radius), *rng.uniform(0, 2 * np.pi, 3)

    def constriction(t: float, thickness: float) -> tuple[float, float]:
        # A bump of this depth at u = 0 narrows the waist; deeper than the thickness it parts the organelle.
        depth = thickness * 1.6 if t >= 1 else 0.75 * thickness * t
        return depth, rng.uniform(0.10, 0.14) * radius

    size = lobe / radius
    hollow = lobe * rng.uniform(0.60, 0.68)
    p[PLASTID] = (
        rng.uniform(0.06, 0.10) * radius,
        lobe * rng.uniform(0.30, 0.42),
        *(hollow * rng.uniform(0.92, 1.08, 3)),
        half,
        *constriction(parting["plastid"], 0.45 * lobe),
        lobe * rng.uniform(0.25, 0.65),
    )

    def half_distance(t: float, reach: float) -> float:
        return max(half, reach) if t >= 1 else t * 0.55 * max(half, reach)

    u, v, w = radius * size * np.array([0.42, 0.30, 0.115]) * rng.uniform(0.85, 1.18, 3)
    t = parting["mitochondrion"]
    u *= 0.72 if t >= 1 else 1 + 0.5 * t
    p[MITOCHONDRION] = (
        radius * rng.uniform(-0.12, 0.12),
        lobe * rng.uniform(-0.10, 0.00),
        u,
        v,
        w,
        half_distance(t, u + 0.06 * radius),
        *constriction(t, w),
        rng.uniform(-0.15, 0.30),
    )
    t = parting["peroxisome"]
    u, v, w = radius * size * rng.uniform(0.12, 0.165) * rng.uniform(0.85, 1.2, 3)
    side = rng.choice([-1.0, 1.0])
    p[PEROXISOME] = (
        side * lobe * rng.uniform(0.44, 0.52),
        lobe * rng.uniform(0.08, 0.22),
        u,
        v,
        w,
        half_distance(t, u + 0.07 * radius),
        *constriction(t, w),
    )
    t = parting["nucleus"]
    u, v, w = radius * size * rng.uniform(0.29, 0.34) * rng.uniform(0.9, 1.1, 3)
    p[NUCLEUS] = (
        -side * lobe * rng.uniform(0.0, 0.10), lobe * rng.uniform(0.42, 0.50), u, v, w,
        half_distance(t, u + 0.06 * radius), *constriction(t, w), min(u, v, w) * rng.uniform(0.35, 0.55),
    )  # fmt: skip
    p[GREY] = rng.normal()
    grains = np.zeros((6, 4))
    for grain in grains[: rng.integers(1, 7)]:
        direction = rng.normal(size=3)
        grain[:3] = direction / np.linalg.norm(direction) * lobe * rng.uniform(0.35, 0.8)
        grain[0] += half * rng.choice([-1.0, 1.0])
        grain[3] = radius * rng.uniform(0.05, 0.12)
    p[STARCH] = grains.ravel()
    return CellAnatomy(stage, p)
