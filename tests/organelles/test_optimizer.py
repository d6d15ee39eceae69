import keras
import numpy as np
import pytest

from cmseg_core.organelles.network import build_unet
from cmseg_core.organelles.optimizer import build_optimizer

RATE = 0.01


@pytest.fixture(scope="module")
def steps() -> dict[str, tuple[tuple[int, ...], np.ndarray]]:
    """Shape and first step of every weight of a small network, along random gradients and without decay."""
    network = build_unet(6, 32, width=8, depth=1)
    optimizer = build_optimizer("muon", RATE, 0.0, None)
    optimizer.build(network.trainable_variables)
    before = [v.numpy().copy() for v in network.trainable_variables]
    rng = np.random.default_rng(0)
    slopes = [rng.standard_normal(v.shape).astype(np.float32) for v in network.trainable_variables]
    optimizer.apply([keras.ops.convert_to_tensor(s) for s in slopes])
    after = [v.numpy() for v in network.trainable_variables]
    return {v.path: (v.shape, a - b) for v, a, b in zip(network.trainable_variables, after, before, strict=True)}


def test_kernels_step_alike_in_all_directions_and_as_far_as_adamw_would(steps) -> None:
    taken = {path: step for path, step in steps.items() if len(step[0]) == 4 and min(step[0][-2:]) >= 8}
    assert any("bottom" in path for path in taken)
    for path, (shape, step) in taken.items():
        singular = np.linalg.svd(step.reshape(-1, shape[-1]), compute_uv=False)
        assert singular.max() / singular.min() < 2.5, path
        assert np.sqrt((step**2).mean()) == pytest.approx(0.2 * RATE, rel=0.25), path


def test_the_first_step_of_everything_else_is_the_rate(steps) -> None:
    others = {path: step for path, step in steps.items() if len(step[0]) != 4 or min(step[0][-2:]) < 8}
    assert any("down1_a_conv" in path for path in others), "the first convolution"
    assert any("classes" in path for path in others), "the last convolution"
    for path, (_, step) in others.items():
        np.testing.assert_allclose(np.abs(step), RATE, rtol=0.02, err_msg=path)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_decay_spares_biases_and_normalisation(name: str) -> None:
    network = build_unet(6, 32, width=8, depth=1)
    optimizer = build_optimizer(name, RATE, 0.5, None)
    optimizer.build(network.trainable_variables)
    before = {v.path: v.numpy().copy() for v in network.trainable_variables}
    optimizer.apply([keras.ops.zeros_like(v) for v in network.trainable_variables])
    for variable in network.trainable_variables:
        decays = variable.path.split("/")[-1] not in ("bias", "gamma", "beta")
        expected = before[variable.path] * (1 - 0.5 * RATE if decays else 1)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=1e-7, err_msg=variable.path)
