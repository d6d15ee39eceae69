"""Figures as text: how numbers, cells and scores read in the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmseg_core.morphology.colours import cell_colours
from cmseg_core.schema import Taxonomy

DASH = "–"

CELL_SCORES: tuple[tuple[str, str, str], ...] = (
    ("ap50", "AP50", "average precision of cells matched at IoU 0.50; 1 is best"),
    ("ap75", "AP75", "the same at IoU 0.75; 1 is best"),
    ("pq", "Panoptic quality", "found cells times how well they overlap; 1 is best"),
    ("voi_split", "VOI split", "information lost by cutting cells apart; 0 is best"),
    ("voi_merge", "VOI merge", "information lost by running cells together; 0 is best"),
    ("arand", "Adapted Rand error", "pairs of voxels wrongly joined or parted; 0 is best"),
    ("count_error", "Count error", "cells too many or too few, as a share of those there; 0 is best"),
)
"""Key in ``evaluation.json``, name and meaning."""


@dataclass(frozen=True)
class ClassFigures:
    """Measurements of one class in one cell."""

    name: str
    colour: str
    count: float | None
    volume_um3: float | None
    surface_um2: float | None
    confidence: float | None


@dataclass(frozen=True)
class CellEntry:
    """One row of the table of cells, and the card that goes with it; contact with the border is no flag here."""

    cell_id: int
    colour: str
    volume_um3: float | None
    surface_um2: float | None
    stage: float | None
    stage_confidence: float | None
    touches_border: bool
    review_score: float | None
    flags: tuple[str, ...]
    classes: tuple[ClassFigures, ...]


def cell_entries(rows: Iterable[Mapping[str, Any]], taxonomy: Taxonomy) -> tuple[CellEntry, ...]:
    """Rows of ``cells.csv`` as the report shows them.

    Parameters
    ----------
    rows : iterable of mapping
        ``cell_id`` and any of the other columns; a column that is missing or not a number reads as a dash. The columns
        of a class are called ``<class>_count``, ``<class>_volume_um3``, ``<class>_surface_um2`` and
        ``<class>_confidence``.
    taxonomy : Taxonomy
        Classes in their order.
    """
    rows = tuple(rows)
    palette = cell_colours(max((int(row["cell_id"]) for row in rows), default=0))
    return tuple(_entry(row, taxonomy, palette) for row in rows)


def _entry(row: Mapping[str, Any], taxonomy: Taxonomy, palette: np.ndarray) -> CellEntry:
    cell_id = int(row["cell_id"])
    classes = (
        ClassFigures(
            c.name,
            c.colour,
            *(number(row.get(f"{c.name}_{m}")) for m in ("count", "volume_um3", "surface_um2", "confidence")),
        )
        for c in taxonomy.foreground
    )
    return CellEntry(
        cell_id=cell_id,
        colour="#" + palette[cell_id - 1].tobytes().hex(),
        volume_um3=number(row.get("volume_um3")),
        surface_um2=number(row.get("surface_um2")),
        stage=number(row.get("stage")),
        stage_confidence=number(row.get("stage_confidence")),
        touches_border=row.get("touches_border") in (True, 1, "True", "true"),
        review_score=number(row.get("review_score")),
        flags=tuple(flag for flag in _flags(row.get("flags")) if flag != "touches_border"),
        classes=tuple(classes),
    )


def _flags(value: Any) -> tuple[str, ...]:
    """Flags from a list, or from the text of one field, where semicolons stand between them."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(";") if part.strip())
    return tuple(map(str, value)) if isinstance(value, Sequence) else ()


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def figure(value: Any, digits: int = 3) -> str:
    """A measured number in `digits` significant digits; whole numbers and text as they are; a dash for none."""
    if isinstance(value, str):
        return value or DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    result = number(value)
    if result is None:
        return DASH
    if isinstance(value, int | np.integer) or result == 0:
        return f"{int(result):,}"
    size = math.floor(math.log10(abs(result)))
    if not -5 <= size < 9:
        return f"{result:.{digits - 1}e}"
    return f"{result:,.{max(0, digits - 1 - size)}f}"


def plain(value: Any) -> str:
    """A number with no more digits than it needs, such as a count or a setting; a dash for none."""
    result = number(value)
    return DASH if result is None else f"{result:.6g}"


def fraction(value: Any, digits: int = 3) -> str:
    """A number between 0 and 1 with fixed decimals, so that columns line up; a dash for none."""
    result = number(value)
    return DASH if result is None else f"{result:.{digits}f}"


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None where there are none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def class_scores(evaluation: Mapping[str, Any], taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """Scores of each class: those of the taxonomy in its order, then any other that was scored."""
    organelles = evaluation.get("organelles") or {}
    iou, dice = organelles.get("iou") or {}, organelles.get("dice") or {}
    colours = {c.name: c.colour for c in taxonomy.classes}
    names = [n for n in taxonomy.names if n in iou or n in dice]
    names += sorted((set(iou) | set(dice)) - set(names))
    return [
        {"name": n, "colour": colours.get(n, "#808080"), "iou": number(iou.get(n)), "dice": number(dice.get(n))}
        for n in names
    ]
