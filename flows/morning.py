"""What people find in Prefect in the morning: the table of the night, its worst cells, and what is unusual."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event

from cmseg_core.evaluation.drift import Drift
from cmseg_core.schema import Workspace
from cmseg_core.storage.store import Store
from cmseg_core.tracking.registry import resolve_model
from flows.drift import drift_of
from flows.places import tracking_uri
from flows.progress import resource_of
from flows.review import cells_to_review, illustrated
from tasks.request import AcquisitionResult

log = logging.getLogger("cmseg.flows")

WORST = 8
"""Cells that the night shows as pictures."""


def show(results: Sequence[AcquisitionResult]) -> None:
    """Leave the night's table and a link to every report where Prefect shows them, and how a model in shadow did."""
    table = [
        {
            "acquisition": result.name,
            "state": result.state,
            "cells": result.cells,
            "cells quarantined": len(result.quarantined_cells),
            "reason": result.reason or "",
            "location": result.location,
        }
        for result in results
    ]
    create_table_artifact(key="night", table=table, description="What became of every new acquisition")
    for result in results:
        if result.state == "published":
            told = f"[Report of {result.name}]({result.location}/report.html): `cmseg fetch {result.name}`"
            create_markdown_artifact(key=_report_key(result.name), markdown=told, description=f"{result.cells} cells")
    if compared := [(result.name, result.shadow) for result in results if result.shadow]:
        told = [
            {"acquisition": name, "model": f"{one.reference}, version {one.version}", "cells": one.cells, **one.iou}
            for name, one in compared
        ]
        create_table_artifact(
            key="shadow", table=told, description="IoU of the model in shadow with what was published"
        )


def show_worst(results: Sequence[AcquisitionResult], store: Store) -> None:
    """Leave the worst cells as pictures; where that fails, it takes nothing from the results."""
    published = [result.name for result in results if result.state == "published"]
    told = "The cells of this night most in need of a look; `cmseg review` has them all"
    try:
        if worst := cells_to_review(store, published, WORST):
            create_markdown_artifact(key="review", markdown=illustrated(store, worst), description=told)
    except Exception:
        log.warning("the worst cells could not be shown", exc_info=True)


def tell_drift(results: Sequence[AcquisitionResult], store: Store, workspace: Workspace) -> None:
    """Tell what is unusual about the results; a comparison that fails takes nothing from them."""
    published = [result.name for result in results if result.state == "published" and result.recomputed]
    if not published:
        return
    rows: list[dict[str, Any]] = []
    try:
        unet = resolve_model(workspace.unet, "unet", tracking_uri(workspace), workspace.workspace / "models")
        for name, found in groupby(drift_of(store, published, unet), key=itemgetter(0)):
            drifts = [drift for _, drift in found]
            rows += [_row(name, one) for one in drifts]
            log.warning("%s is unusual: %s", name, "; ".join(map(str, drifts)))
            emit_event("cmseg.acquisition.drifted", resource=resource_of(name), payload={"reason": str(drifts[0])})
    except Exception:
        log.warning("whether the results are unusual could not be told", exc_info=True)
    if rows:
        create_table_artifact(key="drift", table=rows, description="What is unusual about the results of this night")


def _report_key(name: str) -> str:
    """Under which Prefect keeps all reports of an acquisition: lower-case letters, digits and hyphens."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return f"report-{plain}" if plain == name else f"report-{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _row(name: str, drift: Drift) -> dict[str, Any]:
    value, usually = f"{drift.value:.3g}", f"{drift.usual.median:.3g}"
    of = f"{drift.usual.count} {drift.of}"
    return {"acquisition": name, "figure": drift.figure, "value": value, "usually": usually, "of": of}
