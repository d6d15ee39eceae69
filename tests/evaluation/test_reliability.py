import numpy as np
import pytest

from cmseg_core.evaluation.reliability import Reliability


def voxels(stated: float, right: float, count: int = 200_000, seed: int = 0) -> Reliability:
    rng = np.random.default_rng(seed)
    confidence = np.full(count, round(stated * 255), np.uint8)
    return Reliability().add(confidence, rng.random(count) < right)


def test_honest_confidence_has_no_error() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 256, 400_000).astype(np.uint8)
    honest = Reliability().add(confidence, rng.random(len(confidence)) < confidence / 255)
    assert honest.error() == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize(("stated", "right"), [(0.95, 0.7), (0.6, 0.9)])
def test_the_error_is_the_gap(stated: float, right: float) -> None:
    assert voxels(stated, right).error() == pytest.approx(abs(stated - right), abs=0.005)


def test_parts_add_up() -> None:
    both = voxels(0.95, 0.7).merge(voxels(0.6, 0.9, seed=1))
    assert both.error() == pytest.approx(0.275, abs=0.005)
    assert [n for _, _, n in both.curve()] == [200_000, 200_000]


def test_nothing_has_no_error() -> None:
    assert Reliability().error() is None
