"""The grey window: how samples of any type become 8 bit, always by a stated window."""

from __future__ import annotations

from typing import Protocol

import numba
import numpy as np

SAMPLED_SECTIONS = 32
SAMPLED_VALUES = 1 << 22
"""Floating-point samples that the quantiles are taken of; integer samples are all counted."""


class Readable(Protocol):
    """What a stack must offer for its window to be found."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...


def find_window(source: Readable, low: float, high: float) -> tuple[float, float]:
    """Find the grey values that become 0 and 255.

    Parameters
    ----------
    source : Readable
        Stack of any sample type; up to `SAMPLED_SECTIONS` evenly spaced sections are read, one at a time.
    low, high : float
        Quantiles, from 0 to 1.

    Returns
    -------
    tuple of float
        Values of the two quantiles; the second is always the greater. Constant sections and samples that are not
        finite do not count, unless there is nothing else.

    Raises
    ------
    ValueError
        Where the quantiles are not in order.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"quantiles {low} and {high} are not in order")
    depth = source.shape[0]
    chosen = np.unique(np.linspace(0, depth - 1, min(depth, SAMPLED_SECTIONS)).round().astype(int))
    dtype = np.dtype(source.dtype)
    if dtype.kind == "f":
        return _widened(*_float_quantiles(source, chosen, low, high))
    return _widened(*_integer_quantiles(source, chosen, low, high))


def to_uint8(array: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Map a window of grey values to 0..255.

    Parameters
    ----------
    array : ndarray
        uint8, uint16, int16 or float32, of any shape.
    window : tuple of float, optional
        Values that become 0 and 255; what lies outside is clipped. None keeps 8-bit samples as they are.

    Returns
    -------
    ndarray of uint8
        Rounded half up; samples that are not a number become 0. The input itself where nothing is to be done.

    Raises
    ------
    ValueError
        Where the samples are not 8 bit and there is no window, or the window is empty.
    """
    array = np.asarray(array)
    if window is None:
        if array.dtype != np.uint8:
            raise ValueError(f"samples of type {array.dtype} need a window to become 8 bit")
        return array
    low, high = window
    if not low < high:
        raise ValueError(f"the window from {low} to {high} is empty")
    if array.dtype.kind in "ui" and array.dtype.itemsize <= 2:
        # Every possible sample is mapped once; reading a signed sample's bits as unsigned gives its place in the table.
        bits = np.dtype(f"u{array.dtype.itemsize}")
        samples = np.arange(1 << (8 * bits.itemsize), dtype=bits).view(array.dtype)
        return np.take(_window(samples.astype(np.float64), low, high), np.ascontiguousarray(array).view(bits))
    return _window_kernel(np.ascontiguousarray(array).reshape(-1), low, high).reshape(array.shape)


def _window(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.clip((samples - low) * (255.0 / (high - low)), 0, 255)
    return np.floor(scaled + 0.5).astype(np.uint8)


@numba.njit(parallel=True, cache=True, nogil=True)
def _window_kernel(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    out = np.empty(samples.size, np.uint8)
    scale = 255.0 / (high - low)
    for i in numba.prange(samples.size):
        value = (np.float64(samples[i]) - low) * scale
        # Written so that a comparison with a value that is not a number falls to 0.
        out[i] = np.uint8(min(value, 255.0) + 0.5) if value > 0.0 else np.uint8(0)
    return out


def _integer_quantiles(source: Readable, chosen: np.ndarray, low: float, high: float) -> tuple[float, float]:
    dtype = np.dtype(source.dtype)
    if dtype.itemsize > 2:
        raise ValueError(f"samples of type {dtype} have no grey window")
    bits = np.dtype(f"u{dtype.itemsize}")
    counts = np.zeros(1 << (8 * dtype.itemsize), np.int64)
    constant = np.zeros_like(counts)
    for z in chosen:
        section = np.bincount(np.ascontiguousarray(source.read(z, z + 1)).view(bits).ravel(), minlength=counts.size)
        target = counts if np.count_nonzero(section) > 1 else constant
        target += section
    if not counts.any():
        counts = constant
    values = np.arange(counts.size, dtype=bits).view(dtype)
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(counts[order])
    found = [values[order][np.searchsorted(cumulative, max(1.0, q * cumulative[-1]))] for q in (low, high)]
    return float(found[0]), float(found[1])


def _float_quantiles(source: Readable, chosen: np.ndarray, low: float, high: float) -> tuple[float, float]:
    stride = max(1, chosen.size * source.shape[1] * source.shape[2] // SAMPLED_VALUES)
    kept, constant = [], []
    for z in chosen:
        values = source.read(z, z + 1).reshape(-1)[::stride]
        values = values[np.isfinite(values)]
        if values.size:
            (kept if values.min() < values.max() else constant).append(values)
    if not kept + constant:
        return 0.0, 0.0
    found = np.quantile(np.concatenate(kept or constant), [low, high])
    return float(found[0]), float(found[1])


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if low < high else (low, low + 1.0)
