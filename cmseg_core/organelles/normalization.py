"""Batch normalisation for training, as one operation rather than a dozen."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


class FusedBatchNormalization(layers.BatchNormalization):
    """Keras' batch normalisation, computed while training by the fused operation of TensorFlow.

    Keras forms mean, variance and result step by step in float32, which takes about a sixth of a training step on a
    processor. The operation reads bfloat16 as it is and keeps the statistics in float32 all the same. Weights and
    result are those of Keras' own class, to rounding; with another backend, and in inference, it is that class.
    Files of models hold that class too: a network is built with this one for its training alone.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise (batch, y, x, channels) over all axes but the last."""
        if not (training and self.trainable) or keras.backend.backend() != "tensorflow":
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        normalised = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        shape = ops.shape(inputs)
        count = ops.cast(shape[0] * shape[1] * shape[2], "float32")
        biased = normalised.batch_variance * (1 - 1 / count)  # the operation divides by one voxel less
        for moving, found in ((self.moving_mean, normalised.batch_mean), (self.moving_variance, biased)):
            moving.assign(moving * self.momentum + found * (1 - self.momentum))
        return normalised.y
