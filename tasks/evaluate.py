"""Scores against ground truth, where there is some."""

from __future__ import annotations

from typing import Any

from prefect import task

from cmseg_core.acquisition.reader import read_labels
from cmseg_core.evaluation.field import score_field, score_stages
from cmseg_core.evaluation.instances import score_cells
from cmseg_core.schema import Stage, Taxonomy
from cmseg_core.storage.stages import StageRef
from tasks.request import StoreAddress
from tasks.stage import HOUR, RESUMABLE, opened, stage_output, volume_shape

REVISION = 1


@task(name="evaluate", task_run_name="evaluate", timeout_seconds=2 * HOUR, **RESUMABLE)
def evaluate(
    *,
    separated: StageRef,
    baseline: StageRef | None,
    assembled: StageRef,
    truth_cells: str | None,
    truth_organelles: str | None,
    truth_sha256: dict[str, str],
    stages: dict[int, Stage],
    taxonomy: Taxonomy,
    store: StoreAddress,
) -> StageRef:
    """Score cells, with those of the classical `baseline` beside them, and organelles over the whole field and by
    stage: ``evaluation.json``."""
    inputs = {"instances": separated.key, "assemble": assembled.key} | truth_sha256
    inputs |= {"baseline": baseline.key} if baseline else {}
    settings = {"taxonomy": taxonomy, "stages": {str(cell): stage for cell, stage in stages.items()}}
    output = stage_output(store, "evaluate", inputs, settings, REVISION)
    if not output.complete:
        # Counted slab by slab: the volume stays in the store.
        cells: Any = opened(separated, store).array("cells")
        organelles = opened(assembled, store).array("organelles")
        shape = volume_shape(cells)
        scores: dict[str, Any] = {}
        true_cells = read_labels(truth_cells, shape) if truth_cells else None
        if true_cells is not None:
            scores["cells"] = score_cells(true_cells, cells).model_dump()
            if baseline:
                by_threshold: Any = opened(baseline, store).array("cells")
                scores["baseline"] = score_cells(true_cells, by_threshold).model_dump()
        if truth_organelles:
            truth = read_labels(truth_organelles, shape)
            scores["organelles"] = score_field(truth, organelles, taxonomy)
            if true_cells is not None and stages:
                per_stage = score_stages(truth, organelles, true_cells, cells, stages, taxonomy)
                scores["organelles"]["per_stage"] = per_stage
        output.write_json("evaluation.json", scores)
        output.commit()
    return output.reference
