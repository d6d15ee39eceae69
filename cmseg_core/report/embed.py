"""Bytes inside an HTML page: pictures, models and scripts that need no network."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cmseg_core.report.context import ReportContext
from cmseg_core.report.tables import number

EMBEDDED_BYTES = 11_000_000
"""Characters of base64 that all models of a page may take together, so that a report stays easy to open and send."""


@dataclass(frozen=True)
class PackedModels:
    """Models as they stand in the page.

    Attributes
    ----------
    crowd : str or None
        Gzipped GLB as base64.
    cells : mapping of int to str
        The same for each cell.
    left_out : tuple of int
        Cells that have a model for which the page has no room, and 0 for the crowd.
    """

    crowd: str | None
    cells: Mapping[int, str]
    left_out: tuple[int, ...]


def pack_models(context: ReportContext, limit: int = EMBEDDED_BYTES) -> PackedModels:
    """Pack the crowd, then the cells most in need of a look, as long as there is room.

    Parameters
    ----------
    context : ReportContext
        Gives the models and the review scores.
    limit : int
        Characters of base64 in all.

    Returns
    -------
    PackedModels
        Cells in the order of their ids.
    """
    queue = [(0, context.crowd)] if context.crowd is not None else []
    queue += [(cell, context.models[cell]) for cell in by_need(context.models, context)]
    kept: dict[int, str] = {}
    left_out = []
    for cell, model in queue:
        text = pack(model)
        if len(text) > limit:
            left_out.append(cell)
            continue
        limit -= len(text)
        kept[cell] = text
    crowd = kept.pop(0, None)
    return PackedModels(crowd, dict(sorted(kept.items())), tuple(sorted(left_out)))


def by_need(cells: Iterable[int], context: ReportContext) -> list[int]:
    """Cell ids, the highest review score first."""
    scores = {int(row["cell_id"]): number(row.get("review_score")) or 0.0 for row in context.cells}
    return sorted(cells, key=lambda cell: (-scores.get(cell, 0.0), cell))


def pack(data: bytes) -> str:
    """Gzip without a time stamp, as base64."""
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode("ascii")


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a ``data:`` address."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def content_policy(scripts: Sequence[str]) -> str:
    """Content-Security-Policy that runs these inline scripts only and loads nothing from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode("ascii") for s in scripts)
    sources = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
