"""Distances between the surface of a found structure and that of the true one, in nanometres."""

from __future__ import annotations

from dataclasses import dataclass

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmseg_core.schema import VoxelSize

_CROSS = ndimage.generate_binary_structure(3, 1)


@dataclass(frozen=True)
class SurfaceDistance:
    """How far two surfaces lie apart.

    Attributes
    ----------
    hd95_nm : float
        95th percentile of the distances from each surface to the other, the larger of the two ways.
    assd_nm : float
        Average symmetric surface distance: the mean over all surface voxels of both.
    """

    hd95_nm: float
    assd_nm: float


def surface_distance(
    truth: NDArray[np.bool_], found: NDArray[np.bool_], voxel_size: VoxelSize
) -> SurfaceDistance | None:
    """Distance between the surfaces of two masks.

    A surface voxel belongs to the mask and has a face on what is outside it; the border of the array is outside, but
    not of a single section: its surface is the outline in it.

    Parameters
    ----------
    truth, found : ndarray of bool, shape (z, y, x)
    voxel_size : VoxelSize

    Returns
    -------
    SurfaceDistance or None
        None where either mask is empty, since no distance is defined then.

    References
    ----------
    .. [1] Maier-Hein et al., "Metrics reloaded", 2024.
    """
    if not truth.any() or not found.any():
        return None
    box = ndimage.find_objects((truth | found).view(np.uint8))[0]
    cross = _CROSS[1:2] if len(truth) == 1 else _CROSS
    one, two = _surface(truth[box], cross), _surface(found[box], cross)
    forth, back = _from(one, two, voxel_size), _from(two, one, voxel_size)
    return SurfaceDistance(
        hd95_nm=float(max(np.percentile(forth, 95), np.percentile(back, 95))),
        assd_nm=float((forth.sum() + back.sum()) / (forth.size + back.size)),
    )


def _surface(mask: NDArray[np.bool_], cross: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~ndimage.binary_erosion(mask, cross)


def _from(one: NDArray[np.bool_], two: NDArray[np.bool_], voxel_size: VoxelSize) -> NDArray[np.float32]:
    """Distance of every voxel of one surface to the other surface."""
    return edt.edt(~two, anisotropy=voxel_size.zyx, black_border=False, parallel=1)[one]
