"""Sections as pictures: grey values, cell outlines and organelles, each pixel square in physical units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from cmseg_core.morphology.colours import cell_colours
from cmseg_core.report.context import SectionView
from cmseg_core.schema import Taxonomy

UNCLAIMED = np.array((255, 255, 255), dtype=np.float32)


@dataclass(frozen=True)
class ScaleBar:
    """A round length for the width of a picture.

    Attributes
    ----------
    label : str
        The length with its unit, nm or µm.
    fraction : float
        The length over the width of the picture.
    """

    label: str
    fraction: float


def scale_bar(width_nm: float, target: float = 0.3) -> ScaleBar:
    """Largest 1, 2 or 5 times a power of ten that takes at most `target` of a width in nanometres."""
    power = 10.0 ** math.floor(math.log10(width_nm * target))
    length = next(step * power for step in (5, 2, 1) if step * power <= width_nm * target * (1 + 1e-9))
    label = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    return ScaleBar(label, length / width_nm)


def picture_shape(view: SectionView, longest: int) -> tuple[int, int]:
    """Rows and columns of the picture of a section whose longer side has `longest` square pixels."""
    height, width = (size * pixel for size, pixel in zip(view.raw.shape, view.pixel_nm, strict=True))
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def draw_raw(view: SectionView, longest: int) -> np.ndarray:
    """Grey values as an RGB picture.

    Parameters
    ----------
    view : SectionView
        What to draw.
    longest : int
        Pixels of the picture's longer side.

    Returns
    -------
    ndarray of uint8, shape (rows, columns, 3)
    """
    rows, columns = picture_shape(view, longest)
    shrinks = rows * columns < view.raw.size
    grey = cv2.resize(view.raw, (columns, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.repeat(grey[..., None], 3, axis=2)


def draw_cells(view: SectionView, longest: int) -> np.ndarray:
    """Grey values with each cell outlined and tinted in its colour; foreground that no cell claims turns white.

    Parameters and result are those of :func:`draw_raw`.
    """
    picture = draw_raw(view, longest)
    if view.cells is None:
        return picture
    ids, compact = np.unique(view.cells, return_inverse=True)
    labels = _nearest(compact.reshape(view.raw.shape).astype(np.uint16), picture.shape[:2])
    palette = np.zeros((len(ids), 3), dtype=np.uint8)
    palette[ids > 0] = cell_colours(int(ids.max(initial=0)))[ids[ids > 0].astype(np.int64) - 1]
    inside = (ids > 0)[labels]
    if view.foreground is not None:
        unclaimed = _nearest(view.foreground.astype(np.uint8), labels.shape).astype(bool) & ~inside
        picture = _blend(picture, UNCLAIMED, np.where(unclaimed, 0.55, 0.0))
    opacity = np.where(_edges(labels, longest) & inside, 1.0, np.where(inside, 0.16, 0.0))
    return _blend(picture, palette[labels], opacity)


def draw_organelles(view: SectionView, taxonomy: Taxonomy, longest: int) -> np.ndarray:
    """Grey values with each class outlined and tinted in its colour.

    A near-white class, such as the default cytoplasm, is tinted less: it would bleach what lies under it.
    Parameters and result are those of :func:`draw_raw`.
    """
    picture = draw_raw(view, longest)
    if view.organelles is None:
        return picture
    labels = _nearest(view.organelles, picture.shape[:2])
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(taxonomy)] = taxonomy.palette()
    tint = np.where(palette.min(axis=1) > 220, 0.10, 0.42)
    tint[0] = 0.0
    opacity = np.where(_edges(labels, longest) & (labels > 0), 0.95, tint[labels])
    return _blend(picture, palette[labels], opacity)


def encode_webp(picture: np.ndarray, quality: int = 82) -> bytes:
    """RGB picture (rows, columns, 3) of uint8 as WebP."""
    done, data = cv2.imencode(".webp", picture[..., ::-1], (cv2.IMWRITE_WEBP_QUALITY, quality))
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be written as WebP")
    return data.tobytes()


def _nearest(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(np.ascontiguousarray(labels), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _edges(labels: np.ndarray, longest: int) -> np.ndarray:
    """Pixels within a line's width of another label; the line grows with the picture."""
    width = 2 * max(1, round(longest / 300)) + 1
    kernel = np.ones((width, width), np.uint8)
    return cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)


def _blend(picture: np.ndarray, colour: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    weight = opacity.astype(np.float32)[..., None]
    return np.rint(picture * (1 - weight) + colour * weight).astype(np.uint8)
