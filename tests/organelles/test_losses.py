"""The losses against their formulas written out in NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from cmseg_core.organelles.losses import CompoundLoss, TverskyLoss, compound_loss, tversky_loss


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 5, 7, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return rng.integers(0, 3, (2, 5, 7)).astype(np.int32), probabilities.astype(np.float32)  # class 3 is absent


def tversky(truth, probabilities, alpha, beta, smooth, gamma) -> float:
    losses = []
    for c in range(probabilities.shape[-1]):
        own, p = (truth == c).astype(float), probabilities[..., c].astype(float)
        hit, missed, false = (own * p).sum(), (own * (1 - p)).sum(), ((1 - own) * p).sum()
        losses.append((1 - (hit + smooth) / (hit + alpha * missed + beta * false + smooth)) ** (1 / gamma))
    return float(np.mean(losses))


@pytest.mark.parametrize("gamma", [1.0, 4 / 3])
@pytest.mark.parametrize(("alpha", "beta", "smooth"), [(0.7, 0.3, 1.0), (0.5, 0.5, 0.01)])
def test_tversky(batch, alpha, beta, smooth, gamma) -> None:
    found = float(tversky_loss(alpha, beta, smooth, gamma)(*batch))
    assert found == pytest.approx(tversky(*batch, alpha, beta, smooth, gamma), rel=1e-5)


def test_compound_adds_the_mean_cross_entropy(batch) -> None:
    truth, probabilities = batch
    entropy = -np.log(np.take_along_axis(probabilities, truth[..., None], axis=-1)).mean()
    expected = tversky(*batch, 0.6, 0.4, 1.0, 1.0) + 0.5 * entropy
    assert float(compound_loss(0.6, 0.4, cross_entropy=0.5)(*batch)) == pytest.approx(expected, rel=1e-5)


def test_misses_weigh_more_than_false_alarms_with_the_weights_of_the_paper() -> None:
    truth = np.zeros((1, 8, 8), np.int32)
    truth[0, :4] = 1
    missed, false = (np.zeros((1, 8, 8, 2), np.float32) for _ in range(2))
    missed[..., 1] = truth * (np.arange(8) < 6)
    false[..., 1] = np.maximum(truth, (np.arange(8) >= 6) * (np.arange(8)[:, None] < 6))
    for found in (missed, false):
        found[..., 0] = 1 - found[..., 1]
    only_class_1 = [TverskyLoss(alpha, 1 - alpha) for alpha in (0.7, 0.3)]
    differences = [float(loss(truth, missed)) - float(loss(truth, false)) for loss in only_class_1]
    assert differences[0] > differences[1]


def test_perfect_probabilities_cost_nothing_and_certain_errors_stay_finite(batch) -> None:
    truth, probabilities = batch
    perfect = np.eye(4, dtype=np.float32)[truth]
    assert float(compound_loss()(truth, perfect)) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(float(compound_loss()(truth, np.eye(4, dtype=np.float32)[(truth + 1) % 4])))


def test_settings_survive_serialisation() -> None:
    for loss in (TverskyLoss(0.6, 0.4, 2.0, 1.5), CompoundLoss(0.6, 0.4, cross_entropy=0.25)):
        again = keras.losses.deserialize(keras.losses.serialize(loss))
        assert type(again) is type(loss) and again.get_config() == loss.get_config()
