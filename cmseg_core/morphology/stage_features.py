"""What the stage of the cell cycle is judged by: numbers without a unit, from the labels of one cell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cmseg_core.instances.regions import find_neck
from cmseg_core.morphology.shape import separate_objects, waist_ratio
from cmseg_core.morphology.stage import SINGLE_COPY
from cmseg_core.schema import Taxonomy, VoxelSize

_OF_CELL = ("elongation", "neck", "waist")
_OF_ORGANELLE = ("double", "balance", "apart", "waist", "reach", "elongation", "fraction")
FEATURES: tuple[str, ...] = (
    *(f"cell_{name}" for name in _OF_CELL),
    *(f"{organelle}_{name}" for organelle in SINGLE_COPY for name in _OF_ORGANELLE),
)
"""Names of the features, in order."""

_LEAST_VOXELS = 8
"""Fewer have no shape."""


def stage_features(labels: np.ndarray, taxonomy: Taxonomy, voxel_size: VoxelSize) -> dict[str, float]:
    """Counts and shapes of a cell and its organelles that tell its stage.

    Parameters
    ----------
    labels : ndarray of uint8, shape (z, y, x)
        Class ids in the crop of one cell; 0 outside.
    taxonomy : Taxonomy
        Has the organelles of :data:`~cmseg_core.morphology.stage.SINGLE_COPY`.
    voxel_size : VoxelSize

    Returns
    -------
    dict
        A value for each of :data:`FEATURES`; none depends on how large the cell is. NaN for an organelle that is not
        there, and for everything where there is no cell.

    Notes
    -----
    Of the cell: ``elongation`` (logarithm of the longest over the middle principal axis), ``neck`` (the ratio of
    :func:`~cmseg_core.instances.regions.neck_ratio`) and ``waist``
    (:func:`~cmseg_core.morphology.shape.waist_ratio`). Of each organelle, specks left out: ``double``
    (1 where it is in two pieces or more, else 0), ``balance`` (volume of the second piece over that of the first),
    ``apart`` (distance of their centres over the diameter of the ball of the cell's volume; 0 for one piece),
    ``waist``, ``reach`` (its longest principal axis over that of the cell, which grows as the halves part, whether
    or not they are seen as two), ``elongation`` and ``fraction`` (logarithm of its share of the cell's volume).
    """
    found = dict.fromkeys(FEATURES, float("nan"))
    cell = labels > 0
    if np.count_nonzero(cell) < _LEAST_VOXELS:
        return found
    volume = np.count_nonzero(cell) * voxel_size.volume_um3
    axes = _principal_axes(cell, voxel_size)
    found |= _named("cell", _of_cell(cell, axes, voxel_size))
    for name in SINGLE_COPY:
        found |= _named(name, _of_organelle(labels == taxonomy.id_of(name), axes, volume, voxel_size))
    return found


def _named(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": float(value) for name, value in values.items()}


def _of_cell(cell: np.ndarray, axes: np.ndarray, voxel_size: VoxelSize) -> dict[str, float]:
    return {
        "elongation": np.log(axes[0] / axes[1]),
        "neck": find_neck(cell, voxel_size).ratio,
        "waist": waist_ratio(cell, voxel_size),
    }


def _of_organelle(mask: np.ndarray, cell_axes: np.ndarray, volume: float, voxel_size: VoxelSize) -> dict[str, float]:
    objects, ids = separate_objects(mask, voxel_size)
    whole = np.isin(objects, ids)
    if not ids or np.count_nonzero(whole) < _LEAST_VOXELS:
        return {}
    sizes = np.bincount(objects.ravel())[ids] * voxel_size.volume_um3
    balance = apart = 0.0
    if len(ids) > 1:
        first, second = (np.argwhere(objects == i).mean(axis=0) * voxel_size.zyx for i in ids[:2])
        balance = sizes[1] / sizes[0]
        apart = float(np.linalg.norm(first - second)) / (1000 * (6 * volume / np.pi) ** (1 / 3))
    axes = _principal_axes(whole, voxel_size)
    return {
        "double": float(len(ids) > 1),
        "balance": balance,
        "apart": apart,
        "waist": waist_ratio(whole, voxel_size),
        "reach": axes[0] / cell_axes[0],
        "elongation": np.log(axes[0] / axes[1]),
        "fraction": np.log(sizes.sum() / volume),
    }


def _principal_axes(mask: np.ndarray, voxel_size: VoxelSize) -> np.ndarray:
    """Standard deviations in nm along the principal axes, longest first; a voxel has an extent of its own."""
    points = np.argwhere(mask) * np.array(voxel_size.zyx)
    spread = np.cov(points.T) + np.diag(np.square(voxel_size.zyx) / 12)
    return np.sqrt(np.linalg.eigvalsh(spread)[::-1])
