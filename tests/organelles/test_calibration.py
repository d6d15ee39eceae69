import numpy as np
import pytest

from cmseg_core.organelles.calibration import DeliveredVoxels, apply_temperature, fit_temperature
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
    drawn = drawn_from(fused)
    voxels = DeliveredVoxels(certain[:, None], np.ones((len(certain), 1), np.float32), drawn)
    assert fit_temperature(voxels, weights) == pytest.approx(temperature, rel=0.1)


def test_probabilities_are_interpolated_before_they_are_judged() -> None:
    """Between two voxels of the cube that are sure of different classes, the mean of both is the truth."""
    weights = equal_weights(4)
    corners = opinions(40_000).reshape(20_000, 2, 3, 4)
    shares = np.random.default_rng(2).dirichlet((1, 1), 20_000).astype(np.float32)
    fused = fuse(apply_temperature(corners, 0.6).reshape(-1, 3, 4), weights).reshape(20_000, 2, 4)
    drawn = drawn_from(np.einsum("vkc,vk->vc", fused, shares))
    assert fit_temperature(DeliveredVoxels(corners, shares, drawn), weights) == pytest.approx(0.6, rel=0.1)
    nearer = np.take_along_axis(corners, shares.argmax(axis=1)[:, None, None, None], axis=1)
    alone = DeliveredVoxels(nearer, np.ones((len(nearer), 1), np.float32), drawn)
    assert fit_temperature(alone, weights) > 0.7, "judged at one of the two, the probabilities seem too sure"


def drawn_from(fused: np.ndarray) -> np.ndarray:
    """Labels drawn with given probabilities (voxels, classes)."""
    below = fused.cumsum(axis=1) < np.random.default_rng(1).random((len(fused), 1))
    return below.sum(axis=1).clip(0, fused.shape[1] - 1).astype(np.uint8)
