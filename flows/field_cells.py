"""The cells of labelled fields found anew, and how well that was done."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from cmseg_core.evaluation.instances import (
    ADVICE,
    CellScores,
    Pairs,
    average_precision,
    panoptic_quality,
    score_and_pair,
    threshold_does_better,
)
from cmseg_core.evaluation.tables import format_table
from cmseg_core.schema import PipelineConfig, VoxelSize, Workspace
from cmseg_core.tracking.registry import resolve_model
from flows.console import DONE, Console
from flows.environment import prepare
from flows.material import check_fields, find_material, read_field
from flows.places import store_address, tracking_uri

if TYPE_CHECKING:
    from cmseg_core.foreground.sam import SamModel
    from cmseg_core.foreground.training import LabelledField

THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
"""Of the IoU, from which a cell counts as found."""
_MEASURES = ("ap50", "ap75", "pq", "voi_split", "voi_merge", "arand", "count_error")
_HEAD = ("AP50", "AP75", "PQ", "VOI split", "VOI merge", "ARAND", "count error")
_METHODS = {"sam": "Segment Anything", "threshold": "threshold"}


def find_field_cells(field: LabelledField, pipeline: PipelineConfig, sam: SamModel | None) -> np.ndarray:
    """Cells of a field on its working grid, as the pipeline finds and separates them.

    Parameters
    ----------
    field : LabelledField
    pipeline : PipelineConfig
    sam : SamModel, optional
        None for the classical method.

    Returns
    -------
    ndarray of unsigned integers, shape (z, y, x)
    """
    from cmseg_core.foreground.evidence import find_cells
    from cmseg_core.foreground.runs import LEAST_EVIDENCE
    from cmseg_core.instances.watershed import separate_cells
    from tasks.foreground import working_pixel_nm

    pixel = working_pixel_nm(pipeline.foreground)
    settings = pipeline.foreground.model_copy(update={"method": "sam" if sam else "threshold"})
    evidence = find_cells(field.image, pixel, settings, sam)
    return separate_cells(
        evidence.foreground >= LEAST_EVIDENCE,
        VoxelSize(z=pixel, y=pixel, x=pixel),
        pipeline.instances,
        cell_diameter_nm=pipeline.foreground.cell_diameter_nm,
        interior=evidence.interior,
        threads=os.cpu_count() or 1,
    )


def evaluate_sam(console: Console, model: str, dataset: str, pipeline: PipelineConfig) -> int:
    """Score a model that finds cells as ``cmseg evaluate`` is asked to, with the classical method beside it.

    Raises
    ------
    InputError
        Where the model or the fields cannot be used.
    """
    workspace = Workspace()
    material = find_material(dataset, store_address(workspace).open, pipeline)
    places = check_fields(material)
    prepare(workspace)
    from cmseg_core.foreground.sam import load_sam

    resolved = resolve_model(model, "sam", tracking_uri(workspace), workspace.workspace / "models")
    sam = load_sam(resolved.path)
    names: list[str] = []
    scores: dict[str, list[CellScores]] = {method: [] for method in _METHODS}
    pairs: dict[str, list[Pairs]] = {method: [] for method in _METHODS}
    with console.progress(f"finding the cells of {len(places)} fields", len(places)) as advance:
        for place in places:
            field = read_field(place, pipeline)
            names.append(field.name)
            for method, finder in (("sam", sam), ("threshold", None)):
                found = find_field_cells(field, pipeline, finder)
                score, paired = score_and_pair(field.cells, found)
                scores[method].append(score)
                pairs[method].append(paired)
            advance(1)
    methods = {method: _over_all(scores[method], pairs[method]) for method in _METHODS}
    fields = [
        {"name": name, "cells": pairs["sam"][n].true, **{m: scores[m][n].model_dump() for m in _METHODS}}
        for n, name in enumerate(names)
    ]
    better = "threshold" if threshold_does_better(methods["sam"], methods["threshold"]) else "sam"
    facts = {"model": {"reference": model, "sha256": resolved.sha256}, **material.facts, "better": better}
    console.result({**facts, **methods, "fields": fields}, _described(fields, methods, better))
    return DONE


def _over_all(scores: list[CellScores], pairs: list[Pairs]) -> dict[str, Any]:
    """Average precision and panoptic quality over the cells of all fields; the mean over the fields of the rest."""
    means = {}
    for name in ("voi_split", "voi_merge", "arand", "count_error"):
        known = [value for one in scores if (value := getattr(one, name)) is not None]
        means[name] = float(np.mean(known)) if known else None
    return {
        "ap50": average_precision(pairs, 0.5),
        "ap75": average_precision(pairs, 0.75),
        "pq": panoptic_quality(pairs),
        **means,
        "ap": {f"{least:.2f}": average_precision(pairs, least) for least in THRESHOLDS},
    }


def _described(fields: list[dict[str, Any]], methods: dict[str, Any], better: str) -> str:
    rows = [(field["name"], field["cells"], *(field["sam"][name] for name in _MEASURES)) for field in fields]
    total = sum(field["cells"] for field in fields)
    for method, title in _METHODS.items():
        rows.append((f"all: {title}", total, *(methods[method][name] for name in _MEASURES)))
    curve = [(title, *(methods[method]["ap"].values())) for method, title in _METHODS.items()]
    parts = [
        format_table(("field", "cells", *_HEAD), rows),
        "",
        format_table(("average precision at IoU", *(f"{least:.2f}" for least in THRESHOLDS)), curve),
    ]
    if better == "threshold":
        parts += ["", ADVICE]
    return "\n".join(parts)
