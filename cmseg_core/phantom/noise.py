"""Noise that depends on a voxel's place and a seed alone, so that a block looks the same however it is reached."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_PZ = np.uint64(0x9E3779B97F4A7C15)
_PY = np.uint64(0xC2B2AE3D27D4EB4F)
_PX = np.uint64(0x165667B19E3779F9)


@njit(inline="always")
def hash3(seed: int, z: int, y: int, x: int) -> np.uint64:
    """64 mixed bits of three integers and a seed (splitmix64 finaliser; Steele et al. 2014)."""
    h = np.uint64(seed) + np.uint64(z) * _PZ + np.uint64(y) * _PY + np.uint64(x) * _PX
    h = (h ^ (h >> np.uint64(30))) * _M1
    h = (h ^ (h >> np.uint64(27))) * _M2
    return h ^ (h >> np.uint64(31))


@njit(inline="always")
def normal(seed: int, z: int, y: int, x: int) -> float:
    """Standard normal deviate of one voxel (Box-Muller)."""
    h = hash3(seed, z, y, x)
    a = (float(h >> np.uint64(40)) + 0.5) / 16777216.0
    b = float(h & np.uint64(0xFFFFFF)) / 16777216.0
    return math.sqrt(-2.0 * math.log(a)) * math.cos(6.283185307179586 * b)


@njit(inline="always")
def _lattice(seed: int, z: int, y: int, x: int) -> float:
    return float(hash3(seed, z, y, x) >> np.uint64(40)) / 8388608.0 - 1.0


@njit(inline="always")
def value_noise(seed: int, z: float, y: float, x: float) -> float:
    """Smooth noise in -1..1 with features of size 1 (values on a lattice, smoothstep between)."""
    iz, iy, ix = math.floor(z), math.floor(y), math.floor(x)
    fz, fy, fx = z - iz, y - iy, x - ix
    fz, fy, fx = fz * fz * (3 - 2 * fz), fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
    kz, ky, kx = int(iz), int(iy), int(ix)
    c00 = _lattice(seed, kz, ky, kx) * (1 - fx) + _lattice(seed, kz, ky, kx + 1) * fx
    c01 = _lattice(seed, kz, ky + 1, kx) * (1 - fx) + _lattice(seed, kz, ky + 1, kx + 1) * fx
    c10 = _lattice(seed, kz + 1, ky, kx) * (1 - fx) + _lattice(seed, kz + 1, ky, kx + 1) * fx
    c11 = _lattice(seed, kz + 1, ky + 1, kx) * (1 - fx) + _lattice(seed, kz + 1, ky + 1, kx + 1) * fx
    c0 = c00 * (1 - fy) + c01 * fy
    c1 = c10 * (1 - fy) + c11 * fy
    return c0 * (1 - fz) + c1 * fz
