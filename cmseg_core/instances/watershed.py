"""Touching cells told apart by a marker watershed on a distance map."""

from __future__ import annotations

import cc3d
import edt
import fastremap
import numpy as np
from scipy import ndimage

from cmseg_core.errors import InputError
from cmseg_core.instances.basins import Peaks, find_markers, find_passes, flood, merge_basins, smooth
from cmseg_core.schema import InstancesConfig, VoxelSize

_DAUGHTERS_ALIKE = 0.75
"""Least volume of the lesser daughter over that of the greater."""
_DAUGHTER_SHARE = 0.70
"""Largest volume of a daughter over that of the usual cell of the field: a division halves a cell that has grown."""
_MARKER_GRID_CELLS = 24
"""Blocks across a cell on the grid where markers are sought: fine enough for the smallest lobe worth a marker."""


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

    The distance map of the mask, smoothed by ``h_nm / 2``, is flooded from its maxima. Two basins become one cell when
    the pass between them is less than ``h_nm`` below the lower peak (the h-maxima criterion), when it is above
    ``merge_neck_ratio`` times the lower peak (a dividing pair), or when their peaks are nearer than
    ``marker_distance_fraction`` of a cell. Then the daughters of a division are joined: two parts of like size, neither
    above 0.7 times the median volume of all parts, whose passage in the distance map of the mask is above
    ``daughter_neck_ratio`` times the lower peak. A cell that the border of the field cuts is not narrowed by the
    border.

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
    least_voxels = max(1, int(np.ceil(config.min_volume_um3 / voxel_size.volume_um3)))
    # Dust goes first, so that thousands of specks cost no flooding.
    mask = cc3d.dust(mask, threshold=least_voxels, connectivity=6)
    if not mask.any():
        return np.zeros(mask.shape, np.uint32)
    distance = _smoothed(distance_map(mask, voxel_size, threads), mask, voxel_size, config)
    landscape, neck_ratio = distance, config.merge_neck_ratio
    if interior is not None:
        landscape, neck_ratio = _smoothed(interior, mask, voxel_size, config), config.interior_neck_ratio
    markers, peaks = find_markers(landscape, _block_edges(voxel_size, cell_diameter_nm))
    basins = flood(landscape, markers, mask)
    groups = _group(landscape, basins, peaks, voxel_size, config, neck_ratio, cell_diameter_nm)
    parts = _join_daughters(groups[basins], distance, config.daughter_neck_ratio, least_voxels)
    return _finish(parts, mask, least_voxels)


def distance_map(mask: np.ndarray, voxel_size: VoxelSize, threads: int = 1) -> np.ndarray:
    """Distance of each voxel of a mask to the nearest voxel outside it, in nanometres.

    The border of the field does not count as outside, unless the mask fills the field.

    Parameters
    ----------
    mask : ndarray of bool, shape (z, y, x)
    voxel_size : VoxelSize
    threads : int

    Returns
    -------
    ndarray of float32, shape (z, y, x)
    """
    contiguous = np.ascontiguousarray(mask)
    return edt.edt(contiguous, anisotropy=voxel_size.zyx, black_border=bool(contiguous.all()), parallel=threads)


def _smoothed(landscape: np.ndarray, mask: np.ndarray, voxel_size: VoxelSize, config: InstancesConfig) -> np.ndarray:
    inside = np.where(mask, landscape, 0).astype(np.float32, copy=False)
    return smooth(inside, config.h_nm / 2, voxel_size.zyx) * mask


def _checked_mask(foreground: np.ndarray, interior: np.ndarray | None) -> np.ndarray:
    if foreground.ndim != 3:
        raise InputError("foreground", f"has {foreground.ndim} axes", "give a mask with axes z, y, x")
    if interior is not None and interior.shape != foreground.shape:
        raise InputError("interior", f"has shape {interior.shape}, the mask {foreground.shape}", "give equal shapes")
    if interior is not None and not np.isfinite(interior).all():
        raise InputError("interior", "holds values that are not finite", "give a height in nanometres at every voxel")
    return np.ascontiguousarray(foreground, dtype=bool)


def _block_edges(voxel_size: VoxelSize, cell_diameter_nm: float) -> tuple[int, int, int]:
    z, y, x = (max(1, int(cell_diameter_nm / _MARKER_GRID_CELLS / edge)) for edge in voxel_size.zyx)
    return z, y, x


def _group(
    landscape: np.ndarray,
    basins: np.ndarray,
    peaks: Peaks,
    voxel_size: VoxelSize,
    config: InstancesConfig,
    neck_ratio: float,
    cell_diameter_nm: float,
) -> np.ndarray:
    position_nm = peaks.position * np.array(voxel_size.zyx)
    nearest_nm = config.marker_distance_fraction * cell_diameter_nm

    def are_one(height: float, lower: int, higher: int) -> bool:
        peak = float(peaks.height[lower])
        shallow = peak - height < config.h_nm
        wide = height > neck_ratio * peak
        near = float(np.linalg.norm(position_nm[lower] - position_nm[higher])) < nearest_nm
        return shallow or wide or near

    return merge_basins(peaks, find_passes(landscape, basins), are_one)


def _join_daughters(parts: np.ndarray, distance: np.ndarray, neck_ratio: float, least_voxels: int) -> np.ndarray:
    """Give two daughters that still hang together one id; no part is joined twice."""
    volumes = np.bincount(parts.ravel())
    volumes[0] = 0
    if np.count_nonzero(volumes >= least_voxels) < 2:
        return parts
    usual = float(np.median(volumes[volumes >= least_voxels]))
    width = ndimage.maximum(distance, parts, np.arange(len(volumes)))
    joined = np.arange(len(volumes), dtype=parts.dtype)
    for step in find_passes(distance, parts):
        pair = [step.first, step.second]
        lesser, greater = sorted(volumes[pair])
        small = greater <= _DAUGHTER_SHARE * usual and lesser >= max(_DAUGHTERS_ALIKE * greater, least_voxels)
        if small and step.height > neck_ratio * min(width[pair]) and all(joined[part] == part for part in pair):
            joined[step.second] = step.first
            volumes[pair] = 0
    return joined[parts]


def _finish(labels: np.ndarray, mask: np.ndarray, least_voxels: int) -> np.ndarray:
    """Split what is not connected, keep what no marker reached, drop what is small, order by centroid."""
    missed = mask & (labels == 0)
    if missed.any():
        labels[missed] = labels.max() + 1
    pieces = cc3d.connected_components(labels, connectivity=6, out_dtype=np.uint32)
    statistics = cc3d.statistics(pieces)
    sizes, centroids = statistics["voxel_counts"], statistics["centroids"]
    kept = [i for i in range(1, len(sizes)) if sizes[i] >= least_voxels]
    kept.sort(key=lambda i: tuple(centroids[i]))
    order = np.zeros(len(sizes), np.uint32)
    order[kept] = np.arange(1, len(kept) + 1, dtype=np.uint32)
    return fastremap.remap(pieces, dict(enumerate(order.tolist())), in_place=True)
