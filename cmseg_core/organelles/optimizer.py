"""The optimisers of the organelle network."""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import ops

OptimizerName = Literal["muon", "adamw"]

_NARROW = 8
"""Kernels with fewer channels on either side have too few directions to be worth levelling out."""


class KernelMuon(keras.optimizers.Muon):
    """Muon for the kernels of convolutions, AdamW for everything else.

    Keras' own class leaves every array of other than two axes to AdamW. Here a kernel (height, width, in, out) is taken
    as the matrix (height x width x in, out), as the authors of the method do; the first and the last convolution, and
    the kernels with very few channels, stay with AdamW. The iteration that levels out the singular values runs in
    bfloat16, for which its coefficients were made.

    References
    ----------
    .. [1] Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        return len(variable.shape) != 4 or min(variable.shape[-2:]) < _NARROW

    def _muon_update_step(self, gradient: Any, variable: Any, lr: Any, m: Any) -> None:
        self.assign_add(m, ops.add(gradient, m * (self.momentum - 1)))
        ahead = ops.add(gradient, self.momentum * m)
        matrix = ops.cast(ops.reshape(ahead, (-1, variable.shape[-1])), "bfloat16")
        update = ops.cast(self.zeropower_via_newtonschulz5(matrix, self.ns_steps), variable.dtype)
        self.assign_sub(variable, ops.reshape(self.lr_adjust(lr * update), variable.shape))


def build_optimizer(
    name: OptimizerName, learning_rate: float, weight_decay: float, clip_norm: float | None
) -> keras.optimizers.Optimizer:
    """Build an optimiser whose weight decay leaves biases and normalisation alone."""
    if name == "muon":
        optimizer: keras.optimizers.Optimizer = KernelMuon(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
            global_clipnorm=clip_norm,
        )
    else:
        optimizer = keras.optimizers.AdamW(
            learning_rate=learning_rate, weight_decay=weight_decay, global_clipnorm=clip_norm
        )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
