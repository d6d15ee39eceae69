"""Touching cells told apart by a watershed on a distance map, in a volume that fits into memory.

The steps are those that ``tasks.instances`` takes block by block, so that both give the same partition.
"""

from __future__ import annotations

import numpy as np

from cmseg_core.errors import InputError
from cmseg_core.instances.basins import find_basins
from cmseg_core.instances.landscape import draw_landscape
from cmseg_core.instances.merging import collect, name_cells
from cmseg_core.schema import InstancesConfig, VoxelSize


def separate_cells(
    foreground: np.ndarray,
    voxel_size: VoxelSize,
    config: InstancesConfig,
    *,
    cell_diameter_nm: float,
    interior: np.ndarray | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Give every cell of a foreground mask its own id.

    The distance map of the mask, smoothed by ``h_nm / 2``, is parted into the basins of its maxima. Two basins become
    one cell when the pass between them is less than ``h_nm`` below the lower peak (the h-maxima criterion), when it is
    above ``merge_neck_ratio`` times the lower peak (a dividing pair), or when their peaks are nearer than
    ``marker_distance_fraction`` of a cell. Then the daughters of a division are joined: two parts of like size, neither
    above 0.7 times the median volume of all parts, whose passage in the distance map of the mask is above
    ``daughter_neck_ratio`` times the lower peak. A cell that the border of the field cuts is not narrowed by the
    border. Distances count up to one expected diameter; a cell wider than two is flat in the middle.

    Parameters
    ----------
    foreground : ndarray of bool, shape (z, y, x)
        True inside cells.
    voxel_size : VoxelSize
        Nanometres; may be anisotropic.
    config : InstancesConfig
    cell_diameter_nm : float
        Expected diameter of a cell.
    interior : ndarray of float32, shape (z, y, x), optional
        A landscape in nanometres that takes the place of the distance map: high inside cells, low in the valleys
        between touching ones, for example from 2D instance masks. ``interior_neck_ratio`` then takes the place of
        ``merge_neck_ratio``.
    threads : int
        Threads of the distance transform; the result does not depend on it.

    Returns
    -------
    ndarray of uint32, shape (z, y, x)
        0 outside, cells 1..n in the order of their centroids (z, then y, then x); each is one 6-connected piece of at
        least ``min_volume_um3``.

    Raises
    ------
    InputError
        Where the mask is not 3D, or `interior` has another shape or is not finite.

    References
    ----------
    .. [1] Vincent and Soille, "Watersheds in digital spaces", IEEE PAMI 13:583 (1991).
    .. [2] Grimaud, "A new measure of contrast: the dynamics", Proc. SPIE 1769:292 (1992).
    """
    mask = _checked_mask(foreground, interior)
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    landscape = draw_landscape(
        mask, voxel_size, config, cell_diameter_nm=cell_diameter_nm, interior=interior, threads=threads
    )
    labels, table = find_basins(landscape, mask)
    cells = name_cells(
        collect([table]), shape, voxel_size, config, cell_diameter_nm=cell_diameter_nm, interior=interior is not None
    )
    return cells.of_label[0][labels]


def _checked_mask(foreground: np.ndarray, interior: np.ndarray | None) -> np.ndarray:
    if foreground.ndim != 3:
        raise InputError("foreground", f"has {foreground.ndim} axes", "give a mask with axes z, y, x")
    if interior is not None and interior.shape != foreground.shape:
        raise InputError("interior", f"has shape {interior.shape}, the mask {foreground.shape}", "give equal shapes")
    if interior is not None and not np.isfinite(interior).all():
        raise InputError("interior", "holds values that are not finite", "give a height in nanometres at every voxel")
    return np.ascontiguousarray(foreground, dtype=bool)
