import numpy as np
import pytest

from cmseg_core.organelles.calibration import apply_temperature, fit_temperature
from cmseg_core.organelles.fusion import equal_weights, fuse


def opinions(voxels: int = 20_000, directions: int = 3) -> np.ndarray:
    """Probabilities of four classes on which the directions agree by and large."""
    rng = np.random.default_rng(0)
    common = 3 * rng.standard_normal((voxels, 1, 4))
    logits = common + rng.standard_normal((voxels, directions, 4))
    odds = np.exp(logits)
    return (odds / odds.sum(axis=-1, keepdims=True)).astype(np.float32)


def test_temperature_softens() -> None:
    certain = opinions()
    soft = apply_temperature(certain, 2.0)
    np.testing.assert_allclose(soft.sum(axis=-1), 1, atol=1e-5)
    assert soft.max(axis=-1).mean() < certain.max(axis=-1).mean()
    assert apply_temperature(certain, 1.0) is certain


@pytest.mark.parametrize("weights", [None, equal_weights(4), np.eye(3)[:, [0, 1, 2, 0]]])
@pytest.mark.parametrize("temperature", [0.6, 2.0])
def test_the_temperature_that_made_the_labels_is_found_again(weights, temperature: float) -> None:
    certain = opinions()
    soft = apply_temperature(certain, temperature)
    fused = fuse(soft, weights)
    fused /= fused.sum(axis=1, keepdims=True)
    drawn = (fused.cumsum(axis=1) < np.random.default_rng(1).random((len(fused), 1))).sum(axis=1).clip(0, 3)
    assert fit_temperature(certain, drawn, weights) == pytest.approx(temperature, rel=0.1)
