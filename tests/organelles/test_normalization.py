"""The fused batch normalisation against Keras' own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from cmseg_core.organelles.network import Precision
from cmseg_core.organelles.normalization import FusedBatchNormalization

VOXELS = np.random.default_rng(0).normal(3, 2, (2, 4, 5, 8)).astype(np.float32)
WEIGHTS = [np.random.default_rng(seed).normal(1, 0.1, 8).astype(np.float32) for seed in range(4)]


def layer_of(kind: type[layers.BatchNormalization], policy: Precision) -> layers.BatchNormalization:
    layer = kind(axis=-1, momentum=0.5, dtype=policy)
    layer.build(VOXELS.shape)
    layer.set_weights(WEIGHTS)
    return layer


def after_a_step(kind: type[layers.BatchNormalization], policy: Precision) -> list[Any]:
    """Result, gradients and running statistics."""
    import tensorflow as tf

    layer, voxels = layer_of(kind, policy), tf.constant(VOXELS)
    with tf.GradientTape() as tape:
        tape.watch(voxels)
        out = tf.cast(layer(voxels, training=True), tf.float32)
        total = tf.reduce_sum(out**3)
    gradients = tape.gradient(total, [voxels, layer.gamma.value, layer.beta.value])
    return [out, *gradients, layer.moving_mean.value, layer.moving_variance.value]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the fused operation is TensorFlow's")
@pytest.mark.parametrize(("policy", "off"), [("float32", 1e-4), ("mixed_bfloat16", 0.03)])
def test_a_step_is_that_of_keras_to_rounding(policy: Precision, off: float) -> None:
    theirs, ours = (after_a_step(kind, policy) for kind in (layers.BatchNormalization, FusedBatchNormalization))
    for one, other in zip(ours, theirs, strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, atol=off)


def test_in_inference_it_is_the_layer_of_keras() -> None:
    theirs, ours = (layer_of(kind, "float32")(VOXELS) for kind in (layers.BatchNormalization, FusedBatchNormalization))
    np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))


def test_a_frozen_layer_keeps_its_statistics() -> None:
    layer = layer_of(FusedBatchNormalization, "float32")
    layer.trainable = False
    layer(VOXELS, training=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.moving_mean), WEIGHTS[2])
