"""Scoring a model on labelled cells from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import tifffile
from numpy.typing import NDArray

from cmseg_core.errors import InputError
from cmseg_core.evaluation.tables import class_table, format_table
from cmseg_core.schema import PipelineConfig, Taxonomy, Workspace
from cmseg_core.tracking.catalogue import describe
from cmseg_core.tracking.official import OFFICIAL
from cmseg_core.tracking.registry import SUFFIXES, Role, resolve_model
from flows.cell_cycle import evaluate_classifier
from flows.console import DONE, Console
from flows.environment import prepare
from flows.field_cells import evaluate_sam
from flows.material import find_material, read_all, read_case
from flows.places import store_address, tracking_uri

if TYPE_CHECKING:
    from cmseg_core.evaluation.trials import CellRecord
    from cmseg_core.organelles.dataset import LabelledCell
    from cmseg_core.organelles.model import OrganelleModel


def evaluate_local(
    console: Console,
    model: str,
    dataset: str,
    config: Path | None,
    case: int | None,
    predictions: Path | None,
    role: Role | None = None,
    unet: str | None = None,
) -> int:
    """Score as ``cmseg evaluate`` is asked to, and print the tables.

    Raises
    ------
    InputError
        Where the model or the data set cannot be used, they differ in their classes, or the folder for predictions
        cannot be written.
    """
    role = role or _role_of(model)
    if role != "unet" and (case is not None or predictions is not None):
        option = "--predictions" if case is None else "--case"
        raise InputError(option, "is for models of organelles", "leave it out")
    if role == "stage":
        return evaluate_classifier(console, model, dataset, PipelineConfig.from_file(config), unet)
    if unet is not None:
        raise InputError("--unet", "is for classifiers of the stage", "leave it out, or add --role stage")
    if role == "sam":
        return evaluate_sam(console, model, dataset, PipelineConfig.from_file(config))
    if predictions is not None:
        try:
            predictions.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"cannot be made ({error.strerror})"
            raise InputError(predictions, reason, "name another folder with --predictions") from error
    workspace, pipeline = Workspace(), PipelineConfig.from_file(config)
    store = store_address(workspace)
    material = find_material(dataset, store.open, pipeline)
    prepare(workspace)
    resolved = resolve_model(model, "unet", tracking_uri(workspace), workspace.workspace / "models")
    from cmseg_core.evaluation.trials import summarise
    from cmseg_core.organelles.model import load_model

    network = load_model(resolved.path)
    check_classes(model, network.taxonomy, material.taxonomy)
    if case is None:
        cells = read_all(material, store.open, pipeline, console.say)
    else:
        _, cells = read_case(material, case, store.open, pipeline, console.say)
    records = score_cells(cells, network, pipeline, console, predictions)
    scores = summarise(records, network.taxonomy)
    facts = {
        "model": {"reference": model, "sha256": resolved.sha256},
        **material.facts,
        "temperature": network.temperature,
    }
    console.result({**facts, **scores}, described(scores, network.taxonomy))
    return DONE


def check_classes(model: str, known: Taxonomy, wanted: Taxonomy) -> None:
    """Raise `InputError` where a model knows other classes than the data set it is to be scored on."""
    if known.names != wanted.names:
        reason = f"knows the classes {', '.join(known.names)}"
        mend = f"the data set has {', '.join(wanted.names)}: score on one of the same classes"
        raise InputError(model, reason, mend)


def _role_of(model: str) -> Role:
    """What a model is for, as far as its name or the registry tells: else for organelles."""
    if model.startswith("models:"):
        return cast(Role, describe(model, tracking_uri(Workspace())).tags.get("role", "unet"))
    if model in OFFICIAL:
        return "sam"
    for role, suffixes in SUFFIXES.items():
        if Path(model).suffix in suffixes:
            return role
    return "unet"


def score_cells(
    cells: Sequence[LabelledCell],
    model: OrganelleModel,
    pipeline: PipelineConfig,
    console: Console,
    predictions: Path | None = None,
) -> list[CellRecord]:
    """Label cells anew in every way that is compared, and score what comes out; keep the labels in a folder."""
    records = []
    with console.progress(f"scoring {len(cells)} cells", len(cells)) as advance:
        for cell in cells:
            record, labels = score_cell_anew(cell, model, pipeline)
            records.append(record)
            if predictions is not None:
                path = predictions / _file_name(cell.name)
                tifffile.imwrite(path, labels, compression="zlib", photometric="minisblack")
            advance(1)
    return records


def score_cell_anew(
    cell: LabelledCell, model: OrganelleModel, pipeline: PipelineConfig
) -> tuple[CellRecord, NDArray[np.uint8]]:
    """Label a cell anew in every way that is compared; gives the scores, and the labels from all directions."""
    from cmseg_core.evaluation.trials import score_cell
    from cmseg_core.morphology.review import review_score
    from cmseg_core.organelles.trial import try_cell

    trial = try_cell(cell, model, pipeline.organelles, pipeline.preprocess)
    record = score_cell(
        cell.labels,
        trial.fused,
        trial.single,
        trial.uncalibrated,
        model.taxonomy,
        cell.voxel_size,
        name=cell.name,
        stage=cell.stage,
        review_score=review_score(trial.fused.expected_iou, model.taxonomy),
    )
    return record, trial.fused.labels


def _file_name(sample: str) -> str:
    """Name of a sample as one of a file: the name of a data set's sample may hold anything."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', sample)}.tif"


def _fusing(gains: dict[str, float | None]) -> str:
    """Whether a single direction does better than all three in any class, in one line."""
    known = {name: gain for name, gain in gains.items() if gain is not None}
    if not known:
        return "sections across one axis only: nothing to fuse"
    lost = ", ".join(f"{name} ({gain:+.3f})" for name, gain in known.items() if gain < 0)
    if lost:
        return f"fusing lost to the best single direction in {lost}"
    return (
        f"fusing is at least as good as the best single direction in every class (by {min(known.values()):.3f} or more)"
    )


def described(scores: dict[str, Any], taxonomy: Taxonomy) -> str:
    """The scores of a model as tables: by class, and one direction against three by stage as in the paper's Table 3."""
    rows = []
    for c in taxonomy.foreground:
        ends, cell = scores["intervals"][c.name], scores["per_cell"][c.name]
        span = "-" if ends is None else f"{ends[0]:.3f}-{ends[1]:.3f}"
        one, three = (scores["directions"][way][c.name] for way in ("one", "three"))
        best = scores["fusion"]["best"][c.name]
        alone = None if best is None else f"{scores['directions'][best][c.name]:.3f} {best}"
        right = cell["right_counts"]
        rows.append((c.name, one, alone, three, span, scores["dice"][c.name], cell["hd95_nm"], cell["assd_nm"],
                     cell["volume_ratio"], right))  # fmt: skip
    head = ("class", "1 dir.", "best dir.", "3 dir.", "95 %", "Dice", "HD95 nm", "ASSD nm", "volume", "counts")
    parts = [
        f"{len(scores['cells'])} cells, IoU pooled over them",
        "",
        format_table(head, rows),
        "",
        _fusing(scores["fusion"]["gain"]),
    ]
    if scores["per_stage"]:
        parts += ["", class_table({f"stage {stage}": iou for stage, iou in scores["per_stage"].items()})]
    errors = scores["calibration"]
    before, after = ("-" if (e := errors[key]) is None else f"{e:.3f}" for key in ("error_before", "error_after"))
    parts += ["", f"expected calibration error {before}, with the model's temperature {after}"]
    review = scores["review"]
    parts += [
        f"review score: {review['worst_fifth_found']:.0%} of the worst fifth of the cells in the first fifth; "
        f"area under the risk-coverage curve {review['aurc']:.3f}, in random order {review['aurc_random']:.3f}"
    ]
    return "\n".join(parts)
