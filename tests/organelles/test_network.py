"""The network: shapes, sizes, precision, and the same result on another backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from cmseg_core.organelles.network import build_unet, precision, table_weights

FORWARD = """
import sys
import keras
import numpy as np
from cmseg_core.organelles.network import build_unet
network = build_unet(6, 32, width=4, depth=2)
stored = np.load(sys.argv[1])
network.set_weights([stored[f"w{i}"] for i in range(len(network.weights))])
print(keras.backend.backend())
np.save(sys.argv[2], network.predict_on_batch(stored["images"]))
"""


@pytest.mark.parametrize(("size", "channels", "attention"), [(32, 1, True), (None, 3, True), (32, 1, False)])
def test_every_voxel_gets_probabilities_that_sum_to_one(size, channels, attention) -> None:
    network = build_unet(6, size, width=4, depth=2, attention=attention, channels_in=channels)
    images = np.random.default_rng(0).random((2, 32, 32, channels), dtype=np.float32)
    found = network.predict_on_batch(images)
    assert found.shape == (2, 32, 32, 6) and found.dtype == np.float32
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)


def test_open_edges_take_any_multiple_of_the_poolings() -> None:
    network = build_unet(3, None, width=2, depth=2)
    assert network.predict_on_batch(np.zeros((1, 16, 40, 1), np.float32)).shape == (1, 16, 40, 3)


def test_the_network_of_the_paper_has_the_weights_of_its_table() -> None:
    network = build_unet(6, None, width=64, depth=4)
    assert table_weights() == 28_238_784
    assert network.count_params() == 35_578_506
    assert sum(int(np.prod(w.shape)) for w in network.trainable_weights) == 35_564_810
    kernels = sum(
        int(np.prod(layer.kernel.shape))
        for layer in network.layers
        if isinstance(layer, keras.layers.Conv2D) and "_gate" not in layer.name and "_up_conv" not in layer.name
    )
    assert kernels == table_weights()


@pytest.mark.parametrize(
    "wrong", [{"classes": 1}, {"width": 0}, {"depth": 0}, {"channels_in": 2}, {"channels_in": 0}, {"section_size": 30}]
)
def test_numbers_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValueError):
        build_unet(**{"classes": 6, "section_size": 32, "width": 4, "depth": 2, **wrong})


def test_the_first_weights_depend_on_the_seed_alone() -> None:
    drawn = []
    for seed, disturbance in ((3, 0), (3, 1), (4, 0)):
        keras.utils.set_random_seed(disturbance)  # as other threads do that draw numbers too
        drawn.append(build_unet(6, 32, width=4, depth=2, seed=seed).get_weights())
    for a, b, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.ndim < 4 or not np.array_equal(a, other)
    kernels = {w.tobytes() for w in drawn[0] if w.ndim == 4}
    assert len(kernels) == sum(w.ndim == 4 for w in drawn[0]), "no two layers begin alike"


def test_precision_is_restored_and_the_softmax_stays_float32() -> None:
    before = keras.config.dtype_policy()
    with pytest.raises(RuntimeError), precision("mixed_bfloat16"):
        network = build_unet(6, 32, width=4, depth=2)
        raise RuntimeError
    assert keras.config.dtype_policy() == before
    assert network.get_layer("bottom_a_conv").compute_dtype == "bfloat16"
    assert network.get_layer("probabilities").compute_dtype == "float32"


def test_tensorflow_and_torch_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    network = build_unet(6, 32, width=4, depth=2)
    # Running statistics and biases that are not at their start values, so that their order counts too.
    weights = [w + rng.uniform(0.05, 0.2, w.shape).astype(np.float32) for w in network.get_weights()]
    network.set_weights(weights)
    images = rng.random((2, 32, 32, 1), dtype=np.float32)
    stored = {f"w{i}": w for i, w in enumerate(weights)}
    np.savez(tmp_path / "in.npz", images=images, **stored)
    here = keras.backend.backend()
    other = "torch" if here != "torch" else "tensorflow"
    environment = {**os.environ, "KERAS_BACKEND": other, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", FORWARD, str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == other
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), network.predict_on_batch(images), atol=1e-5)
