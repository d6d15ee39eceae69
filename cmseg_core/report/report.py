"""The report of one acquisition as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cmseg_core.evaluation.instances import ADVICE, threshold_does_better
from cmseg_core.report.context import ReportContext, SectionView
from cmseg_core.report.embed import by_need, content_policy, data_uri, pack_models
from cmseg_core.report.figures import draw_cells, draw_organelles, draw_raw, encode_webp, scale_bar
from cmseg_core.report.tables import (
    CELL_SCORES,
    CellEntry,
    cell_entries,
    class_scores,
    figure,
    fraction,
    mean,
    plain,
)

HERE = Path(__file__).parent
SECTION_PIXELS = 880
PREVIEW_PIXELS = 300
PREVIEWED_CELLS = 60
"""Most cells whose sections a page shows: those most in need of a look."""


def render_report(context: ReportContext) -> str:
    """Render the report.

    Parameters
    ----------
    context : ReportContext
        What to show.

    Returns
    -------
    str
        One HTML document that opens from a file and loads nothing. The same context gives the same text. All text of
        the context is escaped.
    """
    entries = cell_entries(context.cells, context.taxonomy)
    models = pack_models(context)
    previewed = by_need(context.previews, context)[:PREVIEWED_CELLS]
    quarantined = sorted(context.quarantined_cells.items(), key=lambda item: (len(item[0]), item[0]))
    has_viewer = models.crowd is not None or bool(models.cells)
    page_script = _asset("templates/page.js")
    viewer_script = _asset("viewer/dist/viewer.js")
    scripts = [page_script, viewer_script] if has_viewer else [page_script]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=context,
            entries=entries,
            tiles=_tiles(context, entries),
            sections=[_section_panels(view, context) for view in context.sections],
            previews={cell: [_preview(v, context) for v in context.previews[cell]] for cell in previewed},
            quarantined=quarantined,
            models=models,
            has_viewer=has_viewer,
            viewer_data=_viewer_data(context, entries),
            cell_scores=_cell_scores(context),
            advice=_advice(context.evaluation or {}),
            class_scores=class_scores(context.evaluation or {}, context.taxonomy),
            config=json.dumps(context.provenance.get("config") or {}, indent=2, sort_keys=True, default=str),
            policy=content_policy(scripts),
            style=Markup(_asset("templates/style.css")),
            page_script=Markup(page_script),
            viewer_script=Markup(viewer_script),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=figure, fraction=fraction, plain=plain, zip=zip)
    return environment


@cache
def _asset(path: str) -> str:
    return (HERE / path).read_text(encoding="utf-8").strip()


def _tiles(context: ReportContext, entries: Sequence[CellEntry]) -> list[dict[str, str]]:
    """The figures at the top: what was found and whether it can be trusted."""
    whole = [e for e in entries if not e.touches_border]
    flagged = sum(bool(e.flags) for e in entries)
    passed = sum(bool(check["passed"]) for check in context.quality)
    tiles = [
        _tile("Cells", len(entries), f"{len(whole)} whole, {len(entries) - len(whole)} cut by the border"),
        _tile("Mean volume", figure(mean(e.volume_um3 for e in whole)), "of the whole cells", unit="µm³"),
        _tile("Flagged", flagged, "cells with a finding to look at", "warn" if flagged else "good"),
    ]
    if context.quality:
        total = len(context.quality)
        tone = "good" if passed == total else "bad"
        tiles.append(_tile("Quality checks", f"{passed} / {total}", "passed by the acquisition", tone))
    if context.quarantined_cells:
        tiles.append(_tile("Quarantined", len(context.quarantined_cells), "cells without organelles", "bad"))
    if context.evaluation is not None:
        cells = context.evaluation.get("cells") or {}
        scores = class_scores(context.evaluation, context.taxonomy)
        inner = mean(s["iou"] for s in scores if s["name"] != context.taxonomy.names[0])
        tiles.append(_tile("AP50", fraction(cells.get("ap50")), "of the cells, against the truth"))
        tiles.append(_tile("Mean IoU", fraction(inner), "of the classes, against the truth"))
    return tiles


def _tile(name: str, value: object, note: str, tone: str = "", unit: str = "") -> dict[str, str]:
    return {"name": name, "value": str(value), "note": note, "tone": tone, "unit": unit}


def _section_panels(view: SectionView, context: ReportContext) -> dict[str, Any]:
    panels = [("Section", draw_raw(view, SECTION_PIXELS))]
    if view.cells is not None:
        panels.append(("Cells", draw_cells(view, SECTION_PIXELS)))
    if view.organelles is not None:
        panels.append(("Organelles", draw_organelles(view, context.taxonomy, SECTION_PIXELS)))
    total = context.shape["zyx".index(view.direction)]
    return {
        "title": f"Perpendicular to {view.direction}",
        "detail": f"section {view.position + 1:,} of {total:,}",
        "bar": _bar(view),
        "panels": [_picture(name, picture) for name, picture in panels],
    }


def _preview(view: SectionView, context: ReportContext) -> dict[str, Any]:
    picture = _picture(f"across {view.direction}", draw_organelles(view, context.taxonomy, PREVIEW_PIXELS))
    return {**picture, "bar": _bar(view)}


def _picture(name: str, picture: Any) -> dict[str, Any]:
    rows, columns = picture.shape[:2]
    return {"name": name, "uri": data_uri(encode_webp(picture), "image/webp"), "width": columns, "height": rows}


def _bar(view: SectionView) -> Any:
    return scale_bar(view.raw.shape[1] * view.pixel_nm[1])


def _advice(evaluation: Mapping[str, Any]) -> str:
    """Which way of finding cells suits these images."""
    baseline = evaluation.get("baseline")
    if not baseline:
        return ""
    if threshold_does_better(evaluation["cells"], baseline):
        return ADVICE
    return "Threshold: what the classical method finds in the same images. It does no better here."


def _viewer_data(context: ReportContext, entries: Sequence[CellEntry]) -> Mapping[str, Any]:
    return {
        "classes": [{"name": c.name, "colour": c.colour} for c in context.taxonomy.foreground],
        "cells": [{"id": e.cell_id, "colour": e.colour} for e in entries],
    }


def _cell_scores(context: ReportContext) -> list[dict[str, Any]]:
    scores, baseline = ((context.evaluation or {}).get(name) or {} for name in ("cells", "baseline"))
    return [
        {"name": name, "note": note, "value": scores[key], "baseline": baseline.get(key)}
        for key, name, note in CELL_SCORES
        if key in scores
    ]
