"""Stage of the cell cycle from what has divided.

In *C. merolae* the organelles divide in a fixed order: plastid, mitochondrion, peroxisome, nucleus, and last the cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cmseg_core.instances.regions import find_neck
from cmseg_core.morphology.shape import count_objects, waist_ratio
from cmseg_core.schema import STAGES, Stage, Taxonomy, VoxelSize

SINGLE_COPY = ("plastid", "mitochondrion", "peroxisome", "nucleus")
"""Organelles of which a cell has one, or two late in division; in the order in which they divide."""

_TWO_FROM_STAGE: dict[str, int] = {"plastid": 3, "mitochondrion": 4, "peroxisome": 4, "nucleus": 5}
_RELIABILITY: dict[str, float] = {"plastid": 0.95, "mitochondrion": 0.90, "peroxisome": 0.80, "nucleus": 0.95}
"""Chance that a count is right on whether there are two: the smaller the organelle, the more a gap or speck counts."""
_IMPLAUSIBLE_RELIABILITY = 0.60
"""Three or more of an organelle: something parted, but the count is not to be believed."""

_PLASTID_WAIST, _PLASTID_WAIST_WIDTH = 0.86, 0.03
"""Waist ratio at which a single plastid is as likely constricted as not, and the width of the passage."""
_NECK_BELOW = 0.97
_NECK_CHANCE = np.array([0.02, 0.05, 0.20, 0.50, 0.90])
"""Chance, by stage, that the body of the cell has a neck ratio below this: the furrow deepens last."""


def cell_cycle_stage(
    row: Mapping[str, Any], *, plastid_waist: float | None = None, cell_neck: float | None = None
) -> tuple[Stage | None, float]:
    """Estimate the stage of the cell cycle of a *C. merolae* cell.

    Each stage foretells which organelles are double: none in stages 1 and 2, the plastid from 3, mitochondrion and
    peroxisome from 4, the nucleus in 5. In stage 2 the single plastid is constricted, in stage 1 it is not. Counts and
    shapes are weighed as independent witnesses with a fixed reliability, and the likeliest stage is taken, so that one
    wrong count neither decides nor spoils the result. These are rules; where the shapes turn from one stage to the next
    was set on simulated cells. They stand in where no trained classifier
    (:mod:`cmseg_core.morphology.stage_classifier`) is wanted, and are what it is compared with.

    Parameters
    ----------
    row : mapping
        Holds ``<organelle>_count`` for the four organelles of `SINGLE_COPY`.
    plastid_waist : float, optional
        Waist ratio of the plastid, 1 where it is not constricted; counts only while there is one plastid.
    cell_neck : float, optional
        Neck ratio of the cell, 1 where it is not constricted.

    Returns
    -------
    stage : int or None
        1 to 5; None where the row lacks one of the organelles' counts (another taxonomy) or none was found.
    confidence : float
        Probability of that stage among the five under these rules; 0.0 with None. Without either shape, stages 1 and 2
        cannot be told apart and share it.
    """
    counts = [row.get(f"{name}_count") for name in SINGLE_COPY]
    if None in counts or not any(counts):
        return None, 0.0
    likelihood = np.ones(len(STAGES))
    for name, count in zip(SINGLE_COPY, counts, strict=True):
        likelihood *= _from_count(name, int(count or 0))
    if plastid_waist is not None and counts[0] == 1:
        likelihood *= _from_waist(plastid_waist)
    if cell_neck is not None:
        likelihood *= _NECK_CHANCE if cell_neck < _NECK_BELOW else 1 - _NECK_CHANCE
    best = int(np.argmax(likelihood))
    return STAGES[best], float(likelihood[best] / likelihood.sum())


def stage_by_rule(labels: np.ndarray, taxonomy: Taxonomy, voxel_size: VoxelSize) -> tuple[Stage | None, float]:
    """Apply :func:`cell_cycle_stage` to the labels of one cell.

    Parameters
    ----------
    labels : ndarray of uint8, shape (z, y, x)
        Class ids in the crop of the cell; 0 outside.
    taxonomy : Taxonomy
    voxel_size : VoxelSize

    Returns
    -------
    stage : int or None
    confidence : float
    """
    masks = {name: labels == taxonomy.id_of(name) for name in SINGLE_COPY if name in taxonomy.names}
    counts = {f"{name}_count": count_objects(mask, voxel_size) for name, mask in masks.items()}
    waist = waist_ratio(masks["plastid"], voxel_size) if counts.get("plastid_count") else None
    return cell_cycle_stage(counts, plastid_waist=waist, cell_neck=find_neck(labels > 0, voxel_size).ratio)


def _from_count(name: str, count: int) -> np.ndarray:
    if count == 0:
        return np.ones(len(STAGES))
    right = _RELIABILITY[name] if count <= 2 else _IMPLAUSIBLE_RELIABILITY
    foretold = np.array(STAGES) >= _TWO_FROM_STAGE[name]
    return np.where(foretold == (count >= 2), right, 1 - right)


def _from_waist(ratio: float) -> np.ndarray:
    """The plastid is constricted from stage 2 on; one in twenty is seen wrongly."""
    constricted = 0.05 + 0.90 / (1 + np.exp((ratio - _PLASTID_WAIST) / _PLASTID_WAIST_WIDTH))
    return np.where(np.array(STAGES) >= 2, constricted, 1 - constricted)
