"""The attention U-Net that labels sections."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import keras
from keras import layers

BATCH_NORM_MOMENTUM = 0.95
"""Short runs see a few hundred batches; at Keras' 0.99 the running statistics would lag behind the weights."""

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
_Normalization = type[layers.BatchNormalization]


def build_unet(
    classes: int,
    section_size: int | None,
    width: int = 64,
    depth: int = 4,
    attention: bool = True,
    channels_in: int = 1,
    *,
    seed: int = 0,
    normalization: _Normalization = layers.BatchNormalization,
) -> keras.Model:
    """Build the U-Net of Table 2 of Kousaka et al. 2025, or a narrower relative of it.

    Every level has two 3 x 3 convolutions with batch normalisation and ReLU, `width` channels on the first level and
    twice as many after each of `depth` poolings. Going up, a 2 x up-sampling and a 3 x 3 up-convolution halve the
    channels; the skip passes an additive attention gate, is concatenated, and two convolutions follow. A 1 x 1
    convolution and a softmax over the classes, always in float32, end it.

    With ``classes=6, width=64, depth=4`` the kernels of Table 2 hold 28,238,784 weights (:func:`table_weights`). The
    table has two rows a level going up, so it leaves out the up-convolutions (6,266,880 weights). With those, the
    attention gates (1,045,444), batch normalisation (13,696) and the 6 biases of the last layer, the network has
    35,564,810 trainable parameters, and 13,696 running statistics beside them.

    Parameters
    ----------
    classes : int
        Number of classes, background included.
    section_size : int or None
        Edge of the square input in voxels, a multiple of ``2**depth``. None leaves the edges open.
    width : int
        Channels of the first level; the paper's network has 64.
    depth : int
        Number of poolings; the paper's network has 4.
    attention : bool
        Gate the skips.
    channels_in : int
        1, or an odd number of neighbouring sections whose middle one is labelled.
    seed : int
        Of the initial weights, which depend on nothing else.
    normalization : type
        Keras' own layer, or one that computes the same.

    Returns
    -------
    keras.Model
        Maps float32 (batch, y, x, channels_in) in 0..1 to float32 (batch, y, x, classes), which sum to 1.

    Raises
    ------
    ValueError
        Where a number is out of range.

    References
    ----------
    .. [1] Ronneberger, Fischer, Brox, "U-Net: convolutional networks for biomedical image segmentation", 2015.
    .. [2] Oktay et al., "Attention U-Net: learning where to look for the pancreas", 2018.
    .. [3] Kousaka, Iwane, Togashi, Sci. Rep. 15:17481, 2025.
    """
    if classes < 2 or width < 1 or depth < 1:
        raise ValueError(f"classes >= 2, width >= 1, depth >= 1 are needed, not {classes}, {width}, {depth}")
    if channels_in < 1 or channels_in % 2 == 0:
        raise ValueError(f"channels_in is an odd number, not {channels_in}")
    if section_size is not None and section_size % 2**depth:
        raise ValueError(f"section_size {section_size} is not a multiple of {2**depth}")

    parts = _Parts(seed, normalization)
    inputs = keras.Input((section_size, section_size, channels_in), name="section")
    x = inputs
    skips = []
    for level in range(depth):
        x = parts.two_convolutions(x, width * 2**level, f"down{level + 1}")
        skips.append(x)
        x = layers.MaxPooling2D(2, data_format="channels_last", name=f"pool{level + 1}")(x)
    x = parts.two_convolutions(x, width * 2**depth, "bottom")
    for level in reversed(range(depth)):
        x = parts.step_up(x, skips[level], width * 2**level, attention, f"up{level + 1}")
    x = parts.convolution(x, classes, 1, "classes")
    outputs = layers.Activation("softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(inputs, outputs, name="unet")


def table_weights(classes: int = 6, width: int = 64, depth: int = 4, channels_in: int = 1) -> int:
    """Weights of the kernels that Table 2 of the paper lists: no up-convolutions, gates, biases or normalisation.

    ``table_weights()`` is 28,238,784 for the paper's network. (The paper's text says about 130 million, which no
    reading of its table gives.)
    """
    total, before = 0, channels_in
    for level in range(depth + 1):
        after = width * 2**level
        total += 9 * (before * after + after * after)
        before = after
    for level in reversed(range(depth)):
        after = width * 2**level
        total += 9 * (2 * after * after + after * after)
    return total + width * classes


@contextmanager
def precision(policy: Precision) -> Iterator[None]:
    """Build networks under a Keras dtype policy, then restore the policy that was in force."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@dataclass(frozen=True)
class _Parts:
    """What a U-Net is made of."""

    seed: int
    normalization: _Normalization

    def convolution(
        self, x: keras.KerasTensor, channels: int, size: int, name: str, *, bias: bool = True, strides: int = 1
    ) -> keras.KerasTensor:
        # Keras would draw the seed from Python's global generator, in which other threads of the process draw too.
        return layers.Conv2D(
            channels,
            size,
            strides=strides,
            padding="same",
            data_format="channels_last",
            use_bias=bias,
            kernel_initializer=keras.initializers.HeNormal(seed=zlib.crc32(f"{self.seed} {name}".encode())),
            name=name,
        )(x)

    def conv_norm_relu(self, x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
        # No bias: the shift of the batch normalisation that follows takes its place.
        x = self.convolution(x, channels, 3, f"{name}_conv", bias=False)
        x = self.normalization(axis=-1, momentum=BATCH_NORM_MOMENTUM, name=f"{name}_norm")(x)
        return layers.Activation("relu", name=f"{name}_relu")(x)

    def two_convolutions(self, x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
        x = self.conv_norm_relu(x, channels, f"{name}_a")
        return self.conv_norm_relu(x, channels, f"{name}_b")

    def step_up(
        self, x: keras.KerasTensor, skip: keras.KerasTensor, channels: int, attention: bool, name: str
    ) -> keras.KerasTensor:
        gated = self.attention_gate(skip, x, channels, f"{name}_gate") if attention else skip
        x = _up_sample(x, "nearest", f"{name}_sample")
        x = self.conv_norm_relu(x, channels, f"{name}_up")
        x = layers.Concatenate(axis=-1, name=f"{name}_join")([gated, x])
        return self.two_convolutions(x, channels, name)

    def attention_gate(
        self, skip: keras.KerasTensor, signal: keras.KerasTensor, channels: int, name: str
    ) -> keras.KerasTensor:
        """Scale the skip by a map in 0..1 found from the skip and the coarser level's `signal`, on the coarser grid."""
        inner = max(channels // 2, 1)
        theta = self.convolution(skip, inner, 2, f"{name}_skip", bias=False, strides=2)
        phi = self.convolution(signal, inner, 1, f"{name}_signal")
        x = layers.Add(name=f"{name}_add")([theta, phi])
        x = layers.Activation("relu", name=f"{name}_relu")(x)
        x = self.convolution(x, 1, 1, f"{name}_psi")
        x = layers.Activation("sigmoid", name=f"{name}_sigmoid")(x)
        x = _up_sample(x, "bilinear", f"{name}_sample")
        return layers.Multiply(name=f"{name}_scale")([skip, x])


def _up_sample(x: keras.KerasTensor, interpolation: str, name: str) -> keras.KerasTensor:
    return layers.UpSampling2D(2, data_format="channels_last", interpolation=interpolation, name=name)(x)
