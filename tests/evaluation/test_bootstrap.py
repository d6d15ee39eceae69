import numpy as np

from cmseg_core.evaluation.bootstrap import interval, pooled_iou, resampled_iou
from cmseg_core.evaluation.overlap import ClassCounts
from cmseg_core.schema import C_MEROLAE


def tables(cells: int, spread: float, seed: int = 0) -> np.ndarray:
    """Two-class tables whose foreground IoU scatters round one half."""
    rng = np.random.default_rng(seed)
    hits = np.clip(rng.normal(1000, 1000 * spread, cells), 0, 2000).astype(np.int64)
    out = np.zeros((cells, 2, 2), np.int64)
    out[:, 1, 1], out[:, 1, 0], out[:, 0, 0] = hits, 2000 - hits, 500
    return out


def test_pooled_scores_are_those_of_the_counts() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 5, (2, 4, 5, 6))
    counts = ClassCounts(C_MEROLAE).add(truth, found)
    expected = [np.nan if v is None else v for v in counts.iou().values()]
    np.testing.assert_allclose(pooled_iou(counts.table), expected)


def test_the_interval_holds_the_score_and_narrows_with_cells() -> None:
    few, many = tables(10, 0.2), tables(250, 0.2)
    widths = []
    for cells in (few, many):
        found = interval(resampled_iou(cells)[:, 1])
        assert found is not None
        low, high = found
        assert low < pooled_iou(cells.sum(axis=0))[1] < high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


def test_ninety_five_of_a_hundred_intervals_hold_the_true_score() -> None:
    held = 0
    for seed in range(100):
        found = interval(resampled_iou(tables(40, 0.2, seed), resamples=400)[:, 1])
        assert found is not None
        held += found[0] <= 0.5 <= found[1]
    assert 88 <= held <= 99


def test_a_class_that_is_nowhere_has_no_interval() -> None:
    empty = np.zeros((3, 2, 2), np.int64)
    empty[:, 0, 0] = 5
    assert interval(resampled_iou(empty)[:, 1]) is None


def test_the_same_seed_draws_the_same_cells() -> None:
    np.testing.assert_array_equal(resampled_iou(tables(9, 0.2), seed=3), resampled_iou(tables(9, 0.2), seed=3))
