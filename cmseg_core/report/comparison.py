"""Pictures of how a model did: sections with truth and prediction side by side, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmseg_core.report.context import SectionView
from cmseg_core.report.figures import draw_organelles, draw_raw
from cmseg_core.schema import Taxonomy, VoxelSize

SHOWN = 0.25
"""A section shows a class that takes at least this share of the class's largest area on any section."""
_SIDE = 360
_LINE = 26
_INK = (235, 235, 235)
_CELL = 76
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, eq=False)
class Comparison:
    """Grey values, true and found class ids of one shape (z, y, x), all uint8."""

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    found: NDArray[np.uint8]
    voxel_size: VoxelSize


def choose_sections(comparisons: Sequence[Comparison], taxonomy: Taxonomy) -> list[tuple[int, int]]:
    """Sections across z that together show every foreground class of the truth where it is large, and every sample.

    Parameters
    ----------
    comparisons : sequence of Comparison
    taxonomy : Taxonomy

    Returns
    -------
    list of tuple of int
        Number of the comparison and of the section, in order.
    """
    areas = [
        np.stack([np.count_nonzero(one.truth == c.id, axis=(1, 2)) for c in taxonomy.classes], axis=1)
        for one in comparisons
    ]
    places = [(number, z) for number, one in enumerate(areas) for z in range(len(one))]
    table = np.concatenate(areas)
    largest = table.max(axis=0)
    chosen: list[int] = []
    for label in np.argsort(table.sum(axis=0), kind="stable"):
        if label and largest[label] and not (table[chosen, label] >= SHOWN * largest[label]).any():
            chosen.append(int(table[:, label].argmax()))
    shown = {places[row] for row in chosen}
    seen = {number for number, _ in shown}
    rest = {(n, int(one[:, 1:].sum(axis=1).argmax())) for n, one in enumerate(areas) if n not in seen}
    return sorted(shown | rest)


def draw_comparisons(comparisons: Sequence[Comparison], taxonomy: Taxonomy) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Draw each section that :func:`choose_sections` takes: the image, the truth, what was found, and the classes.

    Yields
    ------
    name : str
        Of the sample, with the number of the section.
    picture : ndarray of uint8, shape (rows, columns, 3)
    """
    for number, z in choose_sections(comparisons, taxonomy):
        one = comparisons[number]
        truth, found = (_view(one, labels, z) for labels in (one.truth, one.found))
        panels = [
            ("image", draw_raw(truth, _SIDE)),
            ("truth", draw_organelles(truth, taxonomy, _SIDE)),
            ("prediction", draw_organelles(found, taxonomy, _SIDE)),
        ]
        title = f"{one.name}, section {z}"
        yield title, np.concatenate([_titled(title, panels), _legend(taxonomy, len(panels) * _SIDE)])


def draw_confusion(table: NDArray[np.int64], taxonomy: Taxonomy) -> NDArray[np.uint8]:
    """Draw a confusion matrix, each row as shares of its true class.

    Parameters
    ----------
    table : ndarray of int64, shape (classes, classes)
        Voxels by true class (rows) and found class (columns).
    taxonomy : Taxonomy

    Returns
    -------
    ndarray of uint8, shape (rows, columns, 3)
    """
    names = [f"{c.id} {c.name}" for c in taxonomy.classes]
    left = max(_width(name) for name in names) + 20
    top = 2 * _LINE
    picture = np.zeros((top + _CELL * len(names) + 8, left + _CELL * len(names) + 8, 3), dtype=np.uint8)
    _write(picture, "truth (rows) and prediction (columns), % of the true voxels", (8, _LINE - 8))
    totals = table.sum(axis=1)
    for row, name in enumerate(names):
        _write(picture, name, (8, top + row * _CELL + _CELL // 2 + 5))
        _write(picture, str(row), (left + row * _CELL + _CELL // 2 - 5, top - 8))
        for column in range(len(names)):
            share = table[row, column] / totals[row] if totals[row] else np.nan
            corner = left + column * _CELL, top + row * _CELL
            _square(picture, corner, share, right=row == column)
    return picture


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """RGB picture (rows, columns, 3) of uint8 as PNG."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be written as PNG")
    return data.tobytes()


def _view(one: Comparison, labels: NDArray[np.uint8], z: int) -> SectionView:
    return SectionView(
        direction="z",
        position=z,
        raw=np.ascontiguousarray(one.image[z]),
        pixel_nm=(one.voxel_size.y, one.voxel_size.x),
        organelles=np.ascontiguousarray(labels[z]),
    )


def _titled(title: str, panels: Sequence[tuple[str, NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    height = max(len(picture) for _, picture in panels)
    row = np.zeros((2 * _LINE + height, len(panels) * _SIDE, 3), dtype=np.uint8)
    _write(row, title, (8, _LINE - 8))
    for place, (name, picture) in enumerate(panels):
        left = place * _SIDE
        _write(row, name, (left + 8, 2 * _LINE - 8))
        row[2 * _LINE : 2 * _LINE + len(picture), left : left + picture.shape[1]] = picture
    return row


def _legend(taxonomy: Taxonomy, width: int) -> NDArray[np.uint8]:
    """The foreground classes in their colours, on as many lines as they need."""
    places, line, left = [], 0, 8
    for c in taxonomy.foreground:
        needed = 24 + _width(c.name) + 20
        if left > 8 and left + needed > width:
            line, left = line + 1, 8
        places.append((c, line, left))
        left += needed
    strip = np.zeros(((line + 1) * _LINE + 4, width, 3), dtype=np.uint8)
    for c, line, left in places:
        base = (line + 1) * _LINE - 6
        strip[base - 13 : base, left : left + 16] = c.rgb
        _write(strip, c.name, (left + 24, base))
    return strip


def _square(picture: NDArray[np.uint8], corner: tuple[int, int], share: float, *, right: bool) -> None:
    """One entry of the matrix: green on the diagonal and red off it, the brighter the larger its share."""
    left, top = corner
    colour = np.array((40, 170, 90) if right else (220, 70, 60))
    shade = 28 if np.isnan(share) else 28 + (colour - 28) * share**0.5
    picture[top : top + _CELL - 3, left : left + _CELL - 3] = np.rint(shade)
    text = "-" if np.isnan(share) else f"{100 * share:.1f}"
    _write(picture, text, (left + (_CELL - 3 - _width(text)) // 2, top + _CELL // 2 + 4))


def _width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, 0.5, 1)[0][0])


def _write(picture: NDArray[np.uint8], text: str, place: tuple[int, int]) -> None:
    cv2.putText(picture, text, place, _FONT, 0.5, _INK, 1, cv2.LINE_AA)
