"""Colours that tell cells apart."""

from __future__ import annotations

import colorsys

import numpy as np

_GOLDEN_RATIO = 0.6180339887498949
_TONES = ((0.75, 0.95), (0.55, 0.75), (0.95, 0.80), (0.40, 1.00))
"""Saturation and value that take turns, so that near hues still differ."""


def cell_colours(count: int) -> np.ndarray:
    """Distinct colours in a fixed order: the first colours do not depend on `count`.

    Hues step by the golden ratio, which keeps any number of them apart.

    Parameters
    ----------
    count : int

    Returns
    -------
    ndarray of uint8, shape (count, 3)
        RGB. Row ``i - 1`` is the colour of cell ``i``.
    """
    colours = np.zeros((count, 3), np.uint8)
    for i in range(count):
        saturation, value = _TONES[i % len(_TONES)]
        colours[i] = np.round(255 * np.array(colorsys.hsv_to_rgb((0.02 + i * _GOLDEN_RATIO) % 1, saturation, value)))
    return colours
