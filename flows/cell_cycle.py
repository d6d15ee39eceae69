"""Cells of known stage for the stage classifier, and its scores from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cmseg_core.errors import InputError
from cmseg_core.schema import STAGES, PipelineConfig, Workspace
from cmseg_core.storage.store import Store
from cmseg_core.tracking.registry import ResolvedModel, resolve_model
from flows.console import DONE, Console
from flows.environment import prepare
from flows.material import EVERY, Material, Report, find_material, part, read_all, read_cells
from flows.places import store_address, tracking_uri

if TYPE_CHECKING:
    from cmseg_core.morphology.stage_training import StagedCell
    from cmseg_core.organelles.dataset import LabelledCell


def read_staged(
    material: Material,
    validation: Material | None,
    store: Callable[[], Store],
    pipeline: PipelineConfig,
    report: Report,
    unet: ResolvedModel | None = None,
) -> tuple[list[StagedCell], list[StagedCell]]:
    """Cells of known stage to train on, and to validate with.

    Without material for validation every fifth acquisition is kept, or every fifth cell of each stage where there are
    fewer than five acquisitions. With a U-Net every cell to train on comes twice, with its true labels and with those
    that the U-Net gives it, and those to validate with have the labels of the U-Net alone, as in the pipeline.

    Raises
    ------
    InputError
        Where no classifier can be trained on the cells, or those to validate with have other classes.
    """
    from cmseg_core.morphology.stage_training import check_staged

    if validation is not None and validation.place and validation.taxonomy.names != material.taxonomy.names:
        reason = f"has the classes {', '.join(validation.taxonomy.names)}"
        mend = f"give one with those of {material.name}: {', '.join(material.taxonomy.names)}"
        raise InputError(validation.name, reason, mend)
    if validation is not None:
        groups = read_all(material, store, pipeline, report), read_all(validation, store, pipeline, report)
    elif isinstance(material.place, tuple) and len(material.place) >= EVERY:
        groups = read_cells(material, None, store, pipeline, report)
    else:
        groups = _parted(read_all(material, store, pipeline, report))
    cells, kept = (staged(group) for group in groups)
    check_staged(cells, material.taxonomy, material.name)
    if unet is None:
        return cells, kept
    seen, kept = (segmented(group, unet, material, pipeline, report) for group in groups)
    return cells + seen, kept


def staged(cells: Sequence[LabelledCell]) -> list[StagedCell]:
    """The single cells whose stage is known, with their true labels."""
    from cmseg_core.morphology.stage_training import StagedCell

    return [
        StagedCell(cell.labels, cell.voxel_size, cell.stage, cell.name)
        for cell in cells
        if cell.stage is not None and not cell.field
    ]


def evaluate_classifier(console: Console, model: str, dataset: str, pipeline: PipelineConfig, unet: str | None) -> int:
    """Score a stage classifier as ``cmseg evaluate`` is asked to, and print both confusion matrices.

    Raises
    ------
    InputError
        Where a model or the data set cannot be used.
    """
    workspace = Workspace()
    store, uri, cache = store_address(workspace), tracking_uri(workspace), workspace.workspace / "models"
    material = find_material(dataset, store.open, pipeline)
    prepare(workspace)
    from cmseg_core.evaluation.stages import described, score_classifier
    from cmseg_core.morphology.stage_classifier import load_classifier
    from cmseg_core.morphology.stage_training import check_organelles

    check_organelles(material.taxonomy, dataset)
    resolved = resolve_model(model, "stage", uri, cache)
    classifier = load_classifier(resolved.path)
    labeller = None if unet is None else resolve_model(unet, "unet", uri, cache)
    cells = read_all(material, store.open, pipeline, console.say)
    known = staged(cells) if labeller is None else segmented(cells, labeller, material, pipeline, console.say)
    if not known:
        raise InputError(dataset, "states no stage of any cell", "add cells with `cmseg dataset add --stage N`")
    scores = score_classifier(classifier, known, material.taxonomy)
    facts: dict[str, Any] = {
        "model": {"reference": model, "sha256": resolved.sha256},
        **material.facts,
        "labels": "truth" if labeller is None else {"unet": unet, "sha256": labeller.sha256},
    }
    whose = "true labels" if labeller is None else f"labels that {unet} gives"
    console.result({**facts, **scores}, f"{whose}: {described(scores)}")
    return DONE


def segmented(
    cells: Sequence[LabelledCell], unet: ResolvedModel, material: Material, pipeline: PipelineConfig, report: Report
) -> list[StagedCell]:
    """The single cells whose stage is known, with the labels that the pipeline would give them with this U-Net.

    Raises
    ------
    InputError
        Where the U-Net names other classes than the material.
    """
    from cmseg_core.morphology.stage_training import StagedCell
    from cmseg_core.organelles.inference import segment_cell
    from cmseg_core.organelles.model import load_model

    network = load_model(unet.path)
    if network.taxonomy.names != material.taxonomy.names:
        reason = f"knows the classes {', '.join(network.taxonomy.names)}"
        mend = f"the data set has {', '.join(material.taxonomy.names)}: give a U-Net of the same classes"
        raise InputError(unet.reference, reason, mend)
    report(f"labelling {len(cells)} cells")
    found = []
    for cell in cells:
        if cell.stage is None or cell.field:
            continue
        own, others, size = cell.labels > 0, cell.others, cell.voxel_size
        given = segment_cell(cell.image, own, others, size, network, pipeline.organelles, pipeline.preprocess)
        found.append(StagedCell(given.labels, size, cell.stage, cell.name))
    return found


def _parted(cells: list[LabelledCell]) -> tuple[list[LabelledCell], list[LabelledCell]]:
    """Four of every five cells of each stage, and the fifth."""
    groups = [part([cell for cell in cells if cell.stage == stage]) for stage in STAGES]
    return [cell for kept, _ in groups for cell in kept], [cell for _, held in groups for cell in held]
