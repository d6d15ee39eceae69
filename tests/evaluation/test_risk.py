"""Risk-coverage curves against their definition."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from cmseg_core.evaluation.risk import aurc, risk_coverage, worst_found

RISK = np.array([0.1, 0.5, 0.2, 0.9, 0.3])


def test_the_curve_is_the_mean_risk_of_what_is_trusted() -> None:
    curve = risk_coverage(RISK, score=RISK)
    assert curve == pytest.approx([0.1, 0.15, 0.2, 1.1 / 4, 0.4])
    assert aurc(RISK, RISK) == pytest.approx(curve.mean())


def test_a_random_order_has_the_mean_risk_on_average() -> None:
    areas = [aurc(RISK, np.array(order, dtype=float)) for order in permutations(range(5))]
    assert np.mean(areas) == pytest.approx(RISK.mean())
    assert min(areas) == pytest.approx(aurc(RISK, RISK))
    assert max(areas) == pytest.approx(aurc(RISK, -RISK))


def test_a_score_that_says_nothing_is_a_random_order() -> None:
    risk = np.random.default_rng(0).random(50)
    assert aurc(risk, np.ones(50)) == pytest.approx(risk.mean())
    assert worst_found(risk, np.ones(50)) == pytest.approx(0.2)
    assert worst_found(RISK, np.zeros(5)) == pytest.approx(0.2)


def test_level_scores_count_as_the_mean_over_their_orders() -> None:
    score = np.array([0.0, 1.0, 1.0, 2.0, 2.0])
    broken = [score + 1e-6 * np.array(order) for order in permutations(range(5))]
    assert aurc(RISK, score) == pytest.approx(np.mean([aurc(RISK, s) for s in broken]))
    assert worst_found(RISK, score) == pytest.approx(np.mean([worst_found(RISK, s) for s in broken]))


def test_the_worst_fifth_is_looked_for_in_the_first_fifth() -> None:
    risk = np.arange(20) / 20
    assert worst_found(risk, risk) == 1
    assert worst_found(risk, -risk) == 0
    score = risk.copy()
    score[[17, 3]] = score[[3, 17]]  # one of the four worst changes places with one of the better
    assert worst_found(risk, score) == 0.75
    assert worst_found(np.array([0.4]), np.array([0.0])) == 1
