"""Losses for classes of very different size."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

_TINY = 1e-7


@keras.saving.register_keras_serializable(package="cmseg", name="TverskyLoss")
class TverskyLoss(keras.losses.Loss):
    """One minus the Tversky index, averaged over the classes; sums run over the whole batch.

    The index of a class is ``(TP + smooth) / (TP + alpha FN + beta FP + smooth)``. ``alpha = beta = 0.5`` is the Dice
    loss. `gamma` raises each class's loss to ``1 / gamma`` (focal Tversky); the authors use 4/3.

    Parameters
    ----------
    alpha, beta : float
        Weights of false negatives and of false positives.
    smooth : float
        In voxels; keeps the index of an absent class defined.
    gamma : float
        Focal exponent; 1 switches it off.

    References
    ----------
    .. [1] Salehi, Erdogmus, Gholipour, "Tversky loss function for image segmentation", 2017.
    .. [2] Abraham, Khan, "A novel focal Tversky loss function", 2019.
    """

    def __init__(
        self,
        alpha: float = 0.7,
        beta: float = 0.3,
        smooth: float = 1.0,
        gamma: float = 1.0,
        name: str = "tversky",
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        self.alpha, self.beta, self.smooth, self.gamma = alpha, beta, smooth, gamma

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of labels (batch, y, x) int and probabilities (batch, y, x, classes)."""
        predicted = ops.cast(y_pred, "float32")
        truth = ops.one_hot(ops.cast(y_true, "int32"), predicted.shape[-1], dtype="float32")
        hit = ops.sum(truth * predicted, axis=(0, 1, 2))
        missed = ops.sum(truth, axis=(0, 1, 2)) - hit
        false = ops.sum(predicted, axis=(0, 1, 2)) - hit
        index = (hit + self.smooth) / (hit + self.alpha * missed + self.beta * false + self.smooth)
        loss = 1.0 - index
        if self.gamma != 1.0:
            # The slope of x ** (1 / gamma) is infinite at 0.
            loss = ops.maximum(loss, _TINY) ** (1.0 / self.gamma)
        return ops.mean(loss)

    def get_config(self) -> dict[str, Any]:
        """Settings from which Keras rebuilds the loss."""
        own = {"alpha": self.alpha, "beta": self.beta, "smooth": self.smooth, "gamma": self.gamma}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="cmseg", name="CompoundLoss")
class CompoundLoss(TverskyLoss):
    """Cross-entropy plus Tversky loss: steady gradients from every voxel, and weight for the small classes.

    Parameters
    ----------
    alpha, beta, smooth, gamma : float
        As for :class:`TverskyLoss`; the default is the Dice loss.
    cross_entropy : float
        Weight of the mean cross-entropy.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 1.0,
        gamma: float = 1.0,
        cross_entropy: float = 1.0,
        name: str = "compound",
        **options: Any,
    ) -> None:
        super().__init__(alpha, beta, smooth, gamma, name=name, **options)
        self.cross_entropy = cross_entropy

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of labels (batch, y, x) int and probabilities (batch, y, x, classes)."""
        predicted = ops.cast(y_pred, "float32")
        truth = ops.one_hot(ops.cast(y_true, "int32"), predicted.shape[-1], dtype="float32")
        entropy = -ops.mean(ops.log(ops.maximum(ops.sum(truth * predicted, axis=-1), _TINY)))
        return super().call(y_true, y_pred) + self.cross_entropy * entropy

    def get_config(self) -> dict[str, Any]:
        """Settings from which Keras rebuilds the loss."""
        return {**super().get_config(), "cross_entropy": self.cross_entropy}


def tversky_loss(alpha: float = 0.7, beta: float = 0.3, smooth: float = 1.0, gamma: float = 1.0) -> TverskyLoss:
    """The paper's loss: false negatives weigh 0.7, false positives 0.3. See :class:`TverskyLoss`."""
    return TverskyLoss(alpha, beta, smooth, gamma)


def compound_loss(alpha: float = 0.5, beta: float = 0.5, cross_entropy: float = 1.0) -> CompoundLoss:
    """Cross-entropy plus Dice, or Tversky, loss. See :class:`CompoundLoss`."""
    return CompoundLoss(alpha, beta, cross_entropy=cross_entropy)
