"""What the record of a training holds besides its settings and curves: its data, and how its model does."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmseg_core.schema import PipelineConfig, Taxonomy
from cmseg_core.tracking.runs import TrainingRun
from flows.evaluate import described, score_cell_anew
from flows.material import Material, Report

if TYPE_CHECKING:
    from cmseg_core.evaluation.trials import CellRecord
    from cmseg_core.organelles.dataset import LabelledCell
    from cmseg_core.organelles.model import OrganelleModel
    from cmseg_core.report.comparison import Comparison

CELLS = 6
"""At most so many cells are scored and shown; of a large field a window no larger than a cell's cube."""


def record_material(run: TrainingRun, material: Material, validation: Material | None) -> None:
    """Note the data that a training learns from, and that it is validated with where this is named."""
    for one, context in ((material, "training"), (validation, "validation")):
        if one is not None and one.facts:
            run.log_dataset(one.name, one.facts["dataset_digest"], one.source, context, {**one.facts, **one.profile})


def record_outcome(
    run: TrainingRun,
    model: OrganelleModel,
    cells: Sequence[LabelledCell],
    pipeline: PipelineConfig,
    report: Report,
) -> None:
    """Score a trained model with cells that it never saw, and keep tables and pictures with its run.

    Parameters
    ----------
    run : TrainingRun
        Gets ``evaluation/`` (scores.json and tables.txt as `cmseg evaluate` prints them, confusion.json,
        confusion.png), ``samples/`` (sections with truth and prediction), and the IoU and Dice as metrics.
    model : OrganelleModel
    cells : sequence of LabelledCell
        At most `CELLS` of them are taken, so that every class appears.
    pipeline : PipelineConfig
    report : callable
        Told what goes on.
    """
    from cmseg_core.evaluation.trials import summarise
    from cmseg_core.organelles.selection import choose_cells, window_of
    from cmseg_core.report.comparison import Comparison

    if not cells:
        return
    chosen = [window_of(cell, model.section_size**3) for cell in choose_cells(cells, model.taxonomy, CELLS)]
    report(f"scoring {len(chosen)} of {len(cells)} cells that the model never saw")
    records: list[CellRecord] = []
    comparisons: list[Comparison] = []
    for cell in chosen:
        record, found = score_cell_anew(cell, model, pipeline)
        records.append(record)
        comparisons.append(Comparison(cell.name, cell.image, cell.labels, found, cell.voxel_size))
    scores = summarise(records, model.taxonomy)
    with tempfile.TemporaryDirectory() as folder:
        _write_tables(Path(folder, "evaluation"), records, scores, model.taxonomy)
        _write_samples(Path(folder, "samples"), comparisons, model.taxonomy)
        run.log_artifacts(folder)
    figures = {name: scores[name] for name in ("mean_iou", "iou", "dice")}
    run.log_metrics({"evaluation": {**figures, "calibration_error": scores["calibration"]["error_after"]}})


def _write_tables(folder: Path, records: Sequence[CellRecord], scores: dict[str, Any], taxonomy: Taxonomy) -> None:
    from cmseg_core.report.comparison import draw_confusion, encode_png

    folder.mkdir()
    confusion = np.sum([record.table for record in records], axis=0)
    document = {"classes": taxonomy.names, "voxels": confusion.tolist()}
    (folder / "scores.json").write_text(json.dumps(scores, indent=2, allow_nan=False), encoding="utf-8")
    (folder / "tables.txt").write_text(f"{described(scores, taxonomy)}\n", encoding="utf-8")
    (folder / "confusion.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    (folder / "confusion.png").write_bytes(encode_png(draw_confusion(confusion, taxonomy)))


def _write_samples(folder: Path, comparisons: Sequence[Comparison], taxonomy: Taxonomy) -> None:
    from cmseg_core.report.comparison import draw_comparisons, encode_png

    folder.mkdir()
    for title, picture in draw_comparisons(comparisons, taxonomy):
        (folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', title)}.png").write_bytes(encode_png(picture))
