"""Labels as a network might give them: what a classifier of segmented cells should put up with."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from cmseg_core.morphology.stage import SINGLE_COPY
from cmseg_core.organelles.isolation import dilate
from cmseg_core.preprocess.resample import resize, working_shape
from cmseg_core.schema import Taxonomy, VoxelSize

_GRID_NM = 30.0
_LOST, _ADDED = 0.04, 0.08
"""Chance that an organelle is not found, and that a piece of it is found where there is none."""
_ADDED_RADIUS_NM = (50.0, 150.0)
_SOFTNESS_NM = (10.0, 40.0)
_GRAIN_NM = 90.0
"""Size of the patches in which a network errs alike."""
_BIAS, _NOISE = 0.7, 1.0
"""Spread of the logarithms of the odds, for a class as a whole and from patch to patch, where mistakes are worst."""


def mistaken_labels(
    labels: np.ndarray, taxonomy: Taxonomy, voxel_size: VoxelSize, rng: np.random.Generator
) -> tuple[np.ndarray, VoxelSize]:
    """Spoil the labels of a cell: outlines move, classes grow and shrink, a piece is lost or added.

    Each class is blurred and becomes a probability; noise with a grain, and a bias for each class, are added to its
    logarithm; each voxel takes the likeliest class. How strong both are is drawn anew for each call.

    Parameters
    ----------
    labels : ndarray of uint8, shape (z, y, x)
        Class ids in the crop of one cell; 0 outside.
    taxonomy : Taxonomy
        Has the organelles of :data:`~cmseg_core.morphology.stage.SINGLE_COPY`.
    voxel_size : VoxelSize
    rng : numpy.random.Generator

    Returns
    -------
    labels : ndarray of uint8, shape (z, y, x)
        On a grid of its own, of about 30 nm.
    voxel_size : VoxelSize
        Of that grid.
    """
    shape = working_shape(labels.shape, voxel_size, _GRID_NM)
    spacing = VoxelSize.from_zyx(n * e / m for n, e, m in zip(labels.shape, voxel_size.zyx, shape, strict=True))
    spoilt = resize(labels, shape, "nearest").copy()
    _lose_and_add(spoilt, taxonomy, spacing, rng)
    near = dilate(spoilt > 0, 1)
    strength = rng.uniform(0, 1)
    softness = rng.uniform(*_SOFTNESS_NM) / np.array(spacing.zyx)
    best, found = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.uint8)
    for kind in taxonomy.classes:
        said = np.log(np.maximum(gaussian_filter((spoilt == kind.id).astype(np.float32), softness), 1e-4))
        noise = gaussian_filter(rng.standard_normal(shape, np.float32), _GRAIN_NM / np.array(spacing.zyx))
        said += strength * (rng.normal(0, _BIAS) + _NOISE * noise / max(float(noise.std()), 1e-9))
        better = said > best
        best[better], found[better] = said[better], kind.id
    return np.where(near, found, np.uint8(0)), spacing


def _lose_and_add(labels: np.ndarray, taxonomy: Taxonomy, voxel_size: VoxelSize, rng: np.random.Generator) -> None:
    """Take an organelle out of the labels, or put a ball of it in, in place."""
    inside = np.argwhere(labels > 0)
    filling = next((kind.id for kind in taxonomy.foreground if kind.name not in SINGLE_COPY), 0)
    for name in SINGLE_COPY:
        chance, number = rng.random(), taxonomy.id_of(name)
        if chance < _LOST:
            labels[labels == number] = filling
        elif chance < _LOST + _ADDED and len(inside):
            centre, radius = inside[rng.integers(len(inside))], rng.uniform(*_ADDED_RADIUS_NM)
            within = np.square((inside - centre) * np.array(voxel_size.zyx)).sum(axis=1) <= radius**2
            labels[tuple(inside[within].T)] = number
