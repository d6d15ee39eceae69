"""Training of the stage classifier on labelled cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import log_softmax

from cmseg_core.errors import InputError
from cmseg_core.morphology.review import has_single_copies
from cmseg_core.morphology.stage import SINGLE_COPY
from cmseg_core.morphology.stage_classifier import StageClassifier, standardised
from cmseg_core.morphology.stage_features import FEATURES, stage_features
from cmseg_core.schema import Frozen, Stage, Taxonomy, VoxelSize

_LEAST_SCALE = 1e-3
"""A feature that hardly varies must not be blown up."""


class StageTrainingConfig(Frozen):
    """How a stage classifier is trained."""

    penalty: Annotated[float, Field(gt=0)] = 1e-3
    """Weight of half the squared weights beside the mean cross-entropy."""


@dataclass(frozen=True, eq=False)
class StagedCell:
    """Labels of a cell whose stage is known.

    Attributes
    ----------
    labels : ndarray of uint8, shape (z, y, x)
        Class ids; 0 outside the cell.
    voxel_size : VoxelSize
    stage : int
    name : str
    """

    labels: np.ndarray
    voxel_size: VoxelSize
    stage: Stage
    name: str = "cell"


def check_organelles(taxonomy: Taxonomy, subject: object) -> None:
    """Raise `InputError`, which names `subject`, where the taxonomy lacks an organelle by which stages are told."""
    if not has_single_copies(taxonomy):
        lacking = ", ".join(name for name in SINGLE_COPY if name not in taxonomy.names)
        reason = f"has no {lacking}, by which stages are told"
        raise InputError(subject, reason, f"give cells labelled with {', '.join(SINGLE_COPY)}")


def check_staged(cells: Sequence[StagedCell], taxonomy: Taxonomy, subject: object) -> None:
    """Raise `InputError` where no classifier can be trained on these cells.

    Parameters
    ----------
    cells : sequence of StagedCell
    taxonomy : Taxonomy
    subject : object
        What an error names: the data set.
    """
    check_organelles(taxonomy, subject)
    known = sorted({cell.stage for cell in cells})
    if not known:
        raise InputError(subject, "states no stage of any cell", "add cells with `cmseg dataset add --stage N`")
    if len(known) < 2:
        reason = f"has cells of stage {known[0]} alone"
        raise InputError(subject, reason, "add cells of other stages; there is nothing to tell apart")


def train_classifier(
    cells: Sequence[StagedCell],
    config: StageTrainingConfig,
    taxonomy: Taxonomy,
    *,
    subject: object = "training set",
) -> StageClassifier:
    """Train a classifier on labelled cells.

    Parameters
    ----------
    cells : sequence of StagedCell
    config : StageTrainingConfig
    taxonomy : Taxonomy
        Of the labels.
    subject : object
        What an error names: the data set.

    Returns
    -------
    StageClassifier
        The same for the same cells and settings. It knows the stages that occur.

    Raises
    ------
    InputError
        Where the taxonomy lacks an organelle, or fewer than two stages occur.
    """
    check_staged(cells, taxonomy, subject)
    rows = [list(stage_features(cell.labels, taxonomy, cell.voxel_size).values()) for cell in cells]
    counts = Counter(cell.stage for cell in cells)
    facts: dict[str, Any] = {
        "training": config.model_dump(mode="json"),
        "cells": {str(stage): counts[stage] for stage in sorted(counts)},
        "names": sorted({cell.name for cell in cells}),
    }
    return fit(np.array(rows), np.array([cell.stage for cell in cells]), config.penalty, taxonomy, facts)


def fit(
    features: np.ndarray, stages: np.ndarray, penalty: float, taxonomy: Taxonomy, metadata: dict[str, Any]
) -> StageClassifier:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS from zero: the least of a convex function.

    Parameters
    ----------
    features : ndarray of float, shape (rows, len(FEATURES))
        NaN for what is not known.
    stages : ndarray of int, shape (rows,)
    penalty : float
    taxonomy : Taxonomy
    metadata : dict
        Kept with the classifier.

    Returns
    -------
    StageClassifier
    """
    known, which = np.unique(stages, return_inverse=True)
    present = ~np.isnan(features)
    filled = np.where(present, features, 0)
    counts = np.maximum(present.sum(axis=0), 1)
    centre = filled.sum(axis=0) / counts
    scale = np.sqrt((np.square(filled - centre) * present).sum(axis=0) / counts)
    scale = np.maximum(scale, _LEAST_SCALE)
    x = np.column_stack([standardised(features, centre, scale), np.ones(len(features))])
    target = np.eye(len(known))[which]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(x.shape[1], len(known))
        free = weights.copy()
        free[-1] = 0  # the offsets are not held back
        said = log_softmax(x @ weights, axis=1)
        value = -(said * target).sum() / len(x) + penalty / 2 * np.square(free).sum()
        slope = x.T @ (np.exp(said) - target) / len(x) + penalty * free
        return float(value), slope.ravel()

    found = minimize(loss, np.zeros(x.shape[1] * len(known)), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    weights = np.round(found.x.reshape(x.shape[1], len(known)), 6)
    return StageClassifier(
        taxonomy=taxonomy,
        features=FEATURES,
        stages=tuple(int(stage) for stage in known),  # type: ignore[arg-type]  # a Stage is one of five numbers
        centre=tuple(centre.round(6).tolist()),
        scale=tuple(scale.round(6).tolist()),
        offset=tuple(weights[-1].tolist()),
        weights=tuple(tuple(row) for row in weights[:-1].T.tolist()),
        metadata=metadata,
    )
