"""Random changes of sections that leave their labels right: one warp for the geometry, one table for the greys."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cmseg_core.schema import Fraction, Frozen

Spread = Annotated[float, Field(ge=0)]


class AugmentationConfig(Frozen):
    """Strength of each change; 0 switches it off. Grey levels are in units of the full range 0..1."""

    orientations: bool = True
    """Flips and quarter turns, all eight alike: transposed sections are among them."""
    warped: Fraction = 1.0
    """Share of sections that are turned by any angle, scaled and bent as the next settings say; the others keep their
    voxels as they are."""
    rotation_degrees: Spread = 20.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Magnification between ``1 - scale`` and ``1 + scale``, along each axis on its own by a third of that."""
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.06
    """Of the section's edge."""
    elastic: Fraction = 0.25
    """Share of the warped sections with a smooth random displacement."""
    elastic_amplitude: Spread = 0.02
    """Standard deviation of the displacement, of the section's edge."""
    gamma: Spread = 0.25
    """Standard deviation of the logarithm of the exponent."""
    contrast: Spread = 0.15
    brightness: Spread = 0.06
    noise: Spread = 0.06
    """Largest standard deviation of the added noise."""
    blur: Fraction = 0.25
    """Share of sections that are blurred, by up to 1.2 voxels."""
    coarse: Fraction = 0.2
    """Share of sections that lose resolution along one axis, as sections cut across the milling direction do."""
    stripes: Fraction = 0.15
    """Share of sections with curtaining."""
    inversion: Fraction = 0.0
    """Share of sections with dark and bright exchanged."""


def random_window(
    rng: np.random.Generator,
    shape: tuple[int, int],
    size: int,
    config: AugmentationConfig | None,
    around: tuple[int, int] | None = None,
    warped: bool = True,
) -> NDArray[np.float32]:
    """Draw the map from a window of `size` x `size` voxels to the section it is cut from.

    A section no larger than the window is centred in it; from a larger one the window is cut anywhere, or so that its
    middle half holds the voxel `around` (y, x) as far as the section reaches. Without `warped` it lies along the grid.

    Returns
    -------
    ndarray of float32, shape (2, 3)
        Affine map of window (x, y, 1) to section (x, y), for ``cv2.warpAffine`` with ``WARP_INVERSE_MAP``.
    """
    slack = [max(edge - size, 0) / 2 for edge in shape]
    if around is None:
        off = [rng.uniform(-s, s) if s else 0.0 for s in slack]
    else:
        aims = (v - (edge - 1) / 2 + rng.uniform(-size, size) / 4 for v, edge in zip(around, shape, strict=True))
        off = [min(max(aim, -s), s) for aim, s in zip(aims, slack, strict=True)]
    centre_y, centre_x = ((edge - 1) / 2 + o for edge, o in zip(shape, off, strict=True))
    turn = np.eye(2)
    if config is not None:
        if config.orientations:
            quarter = int(rng.integers(4))
            turn = np.array([[0.0, -1.0], [1.0, 0.0]])
            turn = np.linalg.matrix_power(turn, quarter) @ np.diag([rng.choice([-1.0, 1.0]), 1.0])
        if warped:
            angle = np.deg2rad(rng.uniform(-config.rotation_degrees, config.rotation_degrees))
            zoom = 1 + rng.uniform(-config.scale, config.scale) + rng.uniform(-config.scale, config.scale, 2) / 3
            rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            turn = rotation @ np.diag(1 / zoom) @ turn
        centre_x += rng.uniform(-config.shift, config.shift) * size
        centre_y += rng.uniform(-config.shift, config.shift) * size
    middle = np.full(2, (size - 1) / 2)
    offset = np.array([centre_x, centre_y]) - turn @ middle
    if config is None or not warped:
        offset = np.round(offset)
    return np.column_stack([turn, offset]).astype(np.float32)


def cut_window(
    rng: np.random.Generator,
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    size: int,
    config: AugmentationConfig | None,
    around: tuple[int, int] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut the same random window from a section and its labels.

    Parameters
    ----------
    rng : numpy.random.Generator
    image : ndarray of uint8, shape (y, x, channels)
    labels : ndarray of uint8, shape (y, x)
    size : int
    config : AugmentationConfig or None
        None cuts along the grid and changes nothing.
    around : tuple of int, optional
        A voxel (y, x) that the window is to hold.

    Returns
    -------
    image : ndarray of uint8, shape (size, size, channels)
    labels : ndarray of uint8, shape (size, size)
    """
    shape = (labels.shape[0], labels.shape[1])
    if config is None and shape == (size, size):
        return image, labels
    warped = config is not None and rng.random() < config.warped
    window = random_window(rng, shape, size, config, around, warped)
    if config is not None and warped and rng.random() < config.elastic:
        x, y = _elastic_maps(rng, window, size, config.elastic_amplitude)
        warp_image = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        warp_labels = cv2.remap(labels, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
    else:
        flags = cv2.WARP_INVERSE_MAP
        edge = cv2.BORDER_REFLECT_101
        warp_image = cv2.warpAffine(image, window, (size, size), flags=flags | cv2.INTER_LINEAR, borderMode=edge)
        warp_labels = cv2.warpAffine(labels, window, (size, size), flags=flags | cv2.INTER_NEAREST, borderMode=edge)
    return warp_image.reshape(size, size, -1).astype(np.uint8, copy=False), warp_labels.astype(np.uint8, copy=False)


def _elastic_maps(
    rng: np.random.Generator, window: NDArray[np.float32], size: int, amplitude: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    coarse = rng.standard_normal((6, 6, 2)).astype(np.float32) * (amplitude * size)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    x, y = x + smooth[..., 0], y + smooth[..., 1]
    return (
        window[0, 0] * x + window[0, 1] * y + window[0, 2],
        window[1, 0] * x + window[1, 1] * y + window[1, 2],
    )


def random_greys(rng: np.random.Generator, image: NDArray[np.uint8], config: AugmentationConfig) -> NDArray[np.float32]:
    """Change the grey levels of a section.

    Parameters
    ----------
    rng : numpy.random.Generator
    image : ndarray of uint8, shape (y, x, channels)
    config : AugmentationConfig

    Returns
    -------
    ndarray of float32, shape (y, x, channels)
        In 0..1.
    """
    shape = image.shape
    table = np.linspace(0, 1, 256)
    table = table ** np.exp(rng.normal(0, config.gamma))
    table = 0.5 + (table - 0.5) * (1 + rng.normal(0, config.contrast)) + rng.normal(0, config.brightness)
    if rng.random() < config.inversion:
        table = 1 - table
    out = table.astype(np.float32)[image]
    if rng.random() < config.coarse:
        height, width = shape[:2]
        factor = rng.uniform(1.5, 3.5)
        small = (width, int(height / factor)) if rng.random() < 0.5 else (int(width / factor), height)
        # One channel at a time: OpenCV shrinks by area at most four at once.
        planes = [cv2.resize(plane, small, interpolation=cv2.INTER_AREA) for plane in cv2.split(out)]
        out = np.dstack([cv2.resize(plane, (width, height)) for plane in planes])
    if rng.random() < config.blur:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.2)).reshape(shape)
    if rng.random() < config.stripes:
        stripes = rng.standard_normal((1, shape[1], 1)) * rng.uniform(0, 0.1)
        out = out + (stripes if rng.random() < 0.5 else stripes[:, : shape[1]].transpose(1, 0, 2)[: shape[0]])
    if config.noise:
        sigma = rng.uniform(0, config.noise)
        out = out + rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)
    return np.clip(out, 0, 1).astype(np.float32)
