"""Scores as plain aligned text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cmseg_core.evaluation.instances import CellScores

_ABSENT = "-"

_CELL_ROWS = {
    "ap50": "average precision at IoU 0.50",
    "ap75": "average precision at IoU 0.75",
    "pq": "panoptic quality",
    "voi_split": "variation of information, split (bits)",
    "voi_merge": "variation of information, merge (bits)",
    "arand": "adapted Rand error",
    "count_error": "relative error of the count",
}


def format_table(head: Sequence[str], rows: Sequence[Sequence[object]], digits: int = 3) -> str:
    """Align rows under a head: the first column left, the others right.

    Parameters
    ----------
    head : sequence of str
    rows : sequence of sequences
        As long as the head. Floats get `digits` decimals, None becomes a dash, all else is written as it is.
    digits : int

    Returns
    -------
    str
        Lines without trailing spaces or a trailing newline.
    """
    cells = [list(head), *([_text(value, digits) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    cells.insert(1, ["-" * width for width in widths])
    lines = (
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def cell_table(scores: CellScores, baseline: CellScores | None = None) -> str:
    """The scores of separated cells, one a line, with those of the classical method beside them."""
    columns = [scores] if baseline is None else [scores, baseline]
    rows = [(text, *(getattr(column, key) for column in columns)) for key, text in _CELL_ROWS.items()]
    return format_table(("cells", "score", "threshold")[: len(columns) + 1], rows)


def class_table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """Scores by class.

    Parameters
    ----------
    columns : mapping
        Head of a column (``"iou"``, ``"stage 1"``) to the scores by class name.

    Returns
    -------
    str
        One line a class, in the order in which the columns first name them.
    """
    names = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    return format_table(("class", *columns), [(name, *(c.get(name) for c in columns.values())) for name in names])


def _text(value: object, digits: int) -> str:
    if value is None:
        return _ABSENT
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
