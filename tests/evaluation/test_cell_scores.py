"""Cell scores against worked examples and against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import adapted_rand_error, variation_of_information

from cmseg_core.errors import InputError
from cmseg_core.evaluation import contingency
from cmseg_core.evaluation.contingency import count_contingency
from cmseg_core.evaluation.instances import match_cells, score_cells, table_of_cells


def row(*runs):
    """A volume of shape (1, 1, n) from (label, length) runs."""
    return np.concatenate([np.full(n, label, np.uint32) for label, n in runs]).reshape(1, 1, -1)


def patches(seed, shape=(20, 24, 28), points=12, background=0.3):
    rng = np.random.default_rng(seed)
    sites = rng.random((points, 3)) * shape
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    labels = np.linalg.norm(grid[..., None, :] - sites, axis=-1).argmin(-1).astype(np.uint32) + 1
    labels[rng.random(shape) < background] = 0
    return labels


def test_perfect_result():
    truth = patches(0)
    scores = score_cells(truth, truth * 7)
    assert scores.model_dump() == pytest.approx(
        {"ap50": 1, "ap75": 1, "pq": 1, "voi_split": 0, "voi_merge": 0, "arand": 0, "count_error": 0}
    )


def test_worked_example():
    truth = row((0, 10), (1, 10), (2, 10), (3, 10))
    # IoU: cell 1 with 5 is 8/10, cell 2 with 6 is 10/16; cell 3 is missed, 9 is invented.
    predicted = row((9, 5), (0, 5), (5, 8), (0, 2), (6, 10), (6, 6), (0, 4))
    scores = score_cells(truth, predicted)
    assert scores.ap50 == pytest.approx(2 / 4)
    assert scores.ap75 == pytest.approx(1 / 5)
    assert scores.pq == pytest.approx((0.8 + 0.625) / (2 + 0.5 + 0.5))
    assert scores.count_error == 0
    assert match_cells(truth, predicted) == {5: 1, 6: 2}
    counted = [[0, 1, 2, 5], [1, 2, 0, 0], [2, 0, 1, 0], [6, 0, 0, 24]]  # found on the diagonal, missed, made up on top
    assert table_of_cells(truth, predicted).tolist() == counted


def test_background_overlap_is_no_match():
    truth, predicted = row((0, 90), (1, 10)), row((1, 90), (0, 10))
    scores = score_cells(truth, predicted)
    assert scores.ap50 == 0
    assert scores.pq == 0
    assert match_cells(truth, predicted) == {}


def test_halves_of_one_cell_match_once():
    truth, predicted = row((1, 10)), row((1, 5), (2, 5))
    assert score_cells(truth, predicted).ap50 == pytest.approx(1 / 2)
    assert match_cells(truth, predicted) == {1: 1}
    assert match_cells(predicted, truth) == {1: 1}
    assert match_cells(truth, predicted, 0.6) == {}
    with pytest.raises(ValueError, match=r"0\.5"):
        match_cells(truth, predicted, 0.3)


@pytest.mark.parametrize("seed", range(4))
def test_information_and_rand_equal_skimage(seed):
    truth, predicted = patches(seed), patches(seed + 100, points=5 + 5 * seed)
    scores = score_cells(truth, predicted)
    truth_int, predicted_int = truth.astype(int), predicted.astype(int)
    split, merge = variation_of_information(truth_int, predicted_int, ignore_labels=(0,))
    assert (scores.voi_split, scores.voi_merge) == pytest.approx((split, merge), abs=1e-9)
    error, _, _ = adapted_rand_error(truth_int, predicted_int)
    assert scores.arand == pytest.approx(error, abs=1e-9)


def test_split_and_merge_are_not_exchanged():
    whole, halves = row((1, 16)), row((1, 8), (2, 8))
    split, merged = score_cells(whole, halves), score_cells(halves, whole)
    assert (split.voi_split, split.voi_merge) == pytest.approx((1.0, 0.0))
    assert (merged.voi_split, merged.voi_merge) == pytest.approx((0.0, 1.0))


def test_scores_without_meaning_are_none():
    empty, cell = row((0, 10)), row((0, 5), (1, 5))
    assert set(score_cells(empty, empty).model_dump().values()) == {None}
    invented = score_cells(empty, cell)
    assert (invented.ap50, invented.pq) == (0, 0)
    assert (invented.count_error, invented.voi_split, invented.arand) == (None, None, None)
    missed = score_cells(cell, empty)
    assert (missed.ap50, missed.count_error) == (0, 1)


def test_contingency_in_slabs_equals_brute_force(monkeypatch):
    monkeypatch.setattr(contingency, "_SLAB_VOXELS", 1500)
    truth, predicted = patches(1), patches(2).astype(np.int16)
    table = count_contingency(truth, predicted)
    pairs, counts = np.unique(np.stack([truth.ravel(), predicted.ravel()], 1), axis=0, return_counts=True)
    np.testing.assert_array_equal(np.stack([table.truth, table.predicted], 1), pairs)
    np.testing.assert_array_equal(table.voxels, counts)


def test_large_ids_survive():
    top = 2**32 - 1
    assert match_cells(row((top, 5)), row((top - 1, 5))) == {top - 1: top}


def test_bad_input():
    with pytest.raises(InputError, match="same grid"):
        score_cells(np.zeros((2, 3, 4), int), np.zeros((2, 3, 5), int))
    with pytest.raises(InputError, match="integer"):
        score_cells(np.zeros((2, 3, 4)), np.zeros((2, 3, 4), int))
    with pytest.raises(InputError, match="below 0"):
        score_cells(np.full((2, 3, 4), -1), np.zeros((2, 3, 4), int))
