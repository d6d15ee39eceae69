"""Weights of the directions, found on opinions whose worth is known."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.evaluation.bootstrap import pooled_iou
from cmseg_core.organelles.fusion import equal_weights, fuse
from cmseg_core.organelles.weighting import LEAST_CELLS, fit_weights

CLASSES = 4
Opinions = tuple[np.ndarray, np.ndarray, np.ndarray]


def opinions(seed: int, blur: np.ndarray, cells: int = 8, voxels: int = 1500) -> Opinions:
    """Probabilities (voxels, 3, classes) of voxels of some cells, their truth, and their cells.

    `blur` (3, classes): how far a direction is off where the truth is a class.
    """
    rng = np.random.default_rng(seed)
    cell = np.repeat(np.arange(cells), voxels)
    truth = rng.choice(CLASSES, len(cell), p=(0.2, 0.4, 0.25, 0.15))
    clear = 2.5 * np.eye(CLASSES)[truth][:, None]
    scores = clear + rng.standard_normal((len(cell), 3, CLASSES)) * blur[:, truth].T[..., None]
    odds = np.exp(scores)
    return (odds / odds.sum(axis=-1, keepdims=True)).astype(np.float32), truth, cell


def iou(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    table = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(table, (truth, labels), 1)
    return pooled_iou(table)[1:]


def best_alone(said: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.max([iou(said[:, d].argmax(axis=1), truth) for d in range(3)], axis=0)


def test_a_direction_that_is_obviously_better_gets_the_weight() -> None:
    blur = np.full((3, CLASSES), 4.0)
    blur[1] = 0.5
    weights = fit_weights(*opinions(0, blur))
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    assert (weights[1] > 0.6).all()


def test_directions_that_are_equally_good_count_alike() -> None:
    for seed in range(3):
        weights = fit_weights(*opinions(seed, np.full((3, CLASSES), 2.0)))
        np.testing.assert_allclose(weights, equal_weights(CLASSES))


def test_few_cells_prove_nothing() -> None:
    blur = np.full((3, CLASSES), 4.0)
    blur[1] = 0.5
    np.testing.assert_allclose(fit_weights(*opinions(0, blur, LEAST_CELLS - 1)), equal_weights(CLASSES))


def test_a_class_that_is_nowhere_does_no_harm() -> None:
    said, truth, cell = opinions(0, np.full((3, CLASSES), 2.0))
    said = np.pad(said, ((0, 0), (0, 0), (0, 1)))
    np.testing.assert_allclose(fit_weights(said, truth, cell), equal_weights(CLASSES + 1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spoilt", [(), ((0, 1),), ((0, 1), (0, 2), (1, 2)), ((1, 2), (2, 3)), ((0, 3), (1, 3))])
def test_fusing_never_loses_on_cells_it_was_not_fitted_to(seed: int, spoilt) -> None:
    """Pairs of `spoilt`: a direction and the class in whose voxels it is of no use."""
    blur = np.full((3, CLASSES), 1.5)
    for direction, number in spoilt:
        blur[direction, number] = 8.0
    weights = fit_weights(*opinions(seed, blur))
    said, truth, _ = opinions(100 + seed, blur)
    assert (weights >= 0).all()
    fused, mean = (iou(fuse(said, w).argmax(axis=1), truth) for w in (weights, equal_weights(CLASSES)))
    assert (fused >= best_alone(said, truth)).all()
    assert fused.mean() >= mean.mean() - 1e-3
