"""The landscape in which cells are basins: high in their middle, low where they end or touch."""

from __future__ import annotations

from dataclasses import dataclass

import edt
import numpy as np
from scipy import ndimage

from cmseg_core.preprocess.resample import Grid
from cmseg_core.schema import InstancesConfig, VoxelSize

_LEAST_SIGMA_VOXELS = 0.25
"""A narrower Gaussian is the identity on the grid."""
_TRUNCATE = 3.0
"""Standard deviations at which a Gaussian ends."""


@dataclass(frozen=True, eq=False)
class Landscape:
    """Heights in nanometres, 0 outside cells.

    Attributes
    ----------
    height : ndarray of float32, shape (z, y, x)
        What is flooded.
    distance : ndarray of float32, shape (z, y, x)
        To the nearest voxel outside all cells.
    """

    height: np.ndarray
    distance: np.ndarray


def draw_landscape(
    mask: np.ndarray,
    voxel_size: VoxelSize,
    config: InstancesConfig,
    *,
    cell_diameter_nm: float,
    interior: np.ndarray | None = None,
    threads: int = 1,
) -> Landscape:
    """Smoothed distance map of a mask, and the smoothed `interior` in its place as the height where there is one.

    A voxel depends on nothing further away than :func:`landscape_halo`, to the last bit.

    Parameters
    ----------
    mask : ndarray of bool, shape (z, y, x)
    voxel_size : VoxelSize
    config : InstancesConfig
    cell_diameter_nm : float
    interior : ndarray of float32, shape (z, y, x), optional
        In nanometres.
    threads : int
        The result does not depend on it.

    Returns
    -------
    Landscape
    """
    distance = _smoothed(distance_map(mask, voxel_size, _reach_nm(cell_diameter_nm), threads), mask, voxel_size, config)
    if interior is None:
        return Landscape(distance, distance)
    return Landscape(_smoothed(np.where(mask, interior, np.float32(0)), mask, voxel_size, config), distance)


def distance_map(mask: np.ndarray, voxel_size: VoxelSize, reach_nm: float, threads: int = 1) -> np.ndarray:
    """Distance of each voxel of a mask to the nearest voxel outside it, in nanometres, and at most `reach_nm`.

    The border of the field does not count as outside.

    Parameters
    ----------
    mask : ndarray of bool, shape (z, y, x)
    voxel_size : VoxelSize
    reach_nm : float
    threads : int

    Returns
    -------
    ndarray of float32, shape (z, y, x)
    """
    found = edt.edt(np.ascontiguousarray(mask), anisotropy=voxel_size.zyx, black_border=False, parallel=threads)
    return np.minimum(found, np.float32(reach_nm), out=found)


def landscape_halo(voxel_size: VoxelSize, config: InstancesConfig, cell_diameter_nm: float) -> Grid:
    """Voxels along z, y, x beyond which nothing decides a voxel's height."""
    sigmas = _sigmas(config.h_nm / 2, voxel_size.zyx)
    reach = _reach_nm(cell_diameter_nm)
    z, y, x = (
        int(np.ceil(reach / edge)) + int(_TRUNCATE * sigma + 0.5) + 1
        for edge, sigma in zip(voxel_size.zyx, sigmas, strict=True)
    )
    return z, y, x


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
    sigmas = _sigmas(sigma_nm, spacing)
    if not any(sigmas):
        return landscape
    return ndimage.gaussian_filter(landscape, sigmas, mode="nearest", truncate=_TRUNCATE)


def _sigmas(sigma_nm: float, spacing: tuple[float, float, float]) -> list[float]:
    return [sigma_nm / edge if sigma_nm / edge >= _LEAST_SIGMA_VOXELS else 0.0 for edge in spacing]


def _reach_nm(cell_diameter_nm: float) -> float:
    """Half the width of the widest cell that counts as more than flat on top: twice the expected one."""
    return cell_diameter_nm


def _smoothed(landscape: np.ndarray, mask: np.ndarray, voxel_size: VoxelSize, config: InstancesConfig) -> np.ndarray:
    return smooth(landscape.astype(np.float32, copy=False), config.h_nm / 2, voxel_size.zyx) * mask
