"""Cross-validation: every case trained and scored, and the tables of Kousaka et al. 2025 over all of them."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cmseg_core.evaluation.tables import format_table
from cmseg_core.schema import PipelineConfig, Stage
from flows.console import Console
from flows.evaluate import described, score_cells
from flows.material import check_cases, read_all

if TYPE_CHECKING:
    from cmseg_core.evaluation.trials import CellRecord
    from flows.training_job import TrainingJob
    from flows.unfinished import UnfinishedTraining


def cross_validate(job: TrainingJob, pipeline: PipelineConfig, console: Console) -> tuple[dict[str, Any], str]:
    """Train a model for each case and score it with the cells that it left out.

    The cases that are done are kept until all are: after a kill they are not trained again.

    Parameters
    ----------
    job : TrainingJob
        Its `case` and `out` are set here.
    pipeline : PipelineConfig
    console : Console

    Returns
    -------
    document : dict
        ``cases`` (model, run, counts of cells and sections of each) and the scores over all cases.
    text : str
        Table 1 and Table 3 in the form of the paper, with this data set's figures.

    Raises
    ------
    InputError
        Where the data set cannot be used or has too few cells.
    """
    from cmseg_core.evaluation.trials import summarise
    from cmseg_core.organelles.folds import cross_validation, section_counts
    from cmseg_core.organelles.model import load_model
    from flows.train_unet import train_kept

    check_cases(job.material)
    cells = read_all(job.material, job.store.open, pipeline, console.say)
    stages: list[Stage | None] = [cell.stage for cell in cells]
    taxonomy = job.material.taxonomy
    cases: list[dict[str, Any]] = []
    records: list[CellRecord] = []
    places: list[UnfinishedTraining] = []
    for fold in cross_validation(stages):
        console.say(f"case {fold.case}")
        training, unseen = ([cells[i] for i in group] for group in (fold.training, fold.validation))
        trained, place = train_kept(replace(job, case=fold.case), training, [], unseen, pipeline, console)
        places.append(place)
        model = load_model(place.model)
        records += score_cells(unseen, model, pipeline, console)
        # Sections of the cube that the network sees: every direction to train on, one to validate with.
        sections = [_sections(cell, model.section_size) for cell in cells]
        counts = section_counts(fold, stages, [sum(one) for one in sections], [one[0] for one in sections])
        cases.append({**trained.model_dump(mode="json", exclude={"scores"}), "case": fold.case, "sections": counts})
        del model
        gc.collect()
    for place in places:  # only now: until the last case is done, the models of the others save training them again
        place.remove()
    scores = summarise(records, taxonomy)
    document = {"cases": cases, **scores}
    return document, f"{paper_tables(document)}\n\n{described(scores, taxonomy)}"


def paper_tables(document: dict[str, Any]) -> str:
    """What :func:`cross_validate` found, in the form of Tables 1 and 3 of Kousaka et al. 2025."""
    return f"{_table_of_sections(document['cases'])}\n\n{_table_of_stages(document, tuple(document['iou']))}"


def _sections(cell: Any, size: int) -> tuple[int, ...]:
    """Sections of a cell or field, across each axis that gives any."""
    from cmseg_core.organelles.dataset import field_shape, section_axes

    if not cell.field:
        return size, size, size
    shape = field_shape(cell)
    return tuple(shape[axis] for axis in section_axes(shape, size))


def _table_of_sections(cases: list[dict[str, Any]]) -> str:
    """Table 1: cells trained on, sections trained on (LI) and validated with (VI), by stage."""
    groups = list(cases[0]["sections"])
    head = ["case"]
    for group in groups:
        name = "all" if group == "total" else f"s{group}"
        head += [f"{name} cells", "LI", "VI"]
    rows = [[str(case["case"]), *(n for group in groups for n in case["sections"][group])] for case in cases]
    return format_table(head, rows)


def _table_of_stages(scores: dict[str, Any], names: tuple[str, ...]) -> str:
    """Table 3: IoU by class and stage, one direction and three."""
    stages = list(scores["per_stage"])
    if not stages:
        return "no stage is known: no table by stage"
    one, three = scores["per_stage_one"], scores["per_stage"]
    head = ["class", *(f"stage {stage} {ways}" for stage in stages for ways in ("1", "3")), "mean 1", "mean 3"]
    rows = []
    for name in names:
        pairs = [(one[stage][name], three[stage][name]) for stage in stages]
        rows.append(
            [name, *(value for pair in pairs for value in pair), *(_mean(way) for way in zip(*pairs, strict=True))]
        )
    return format_table(head, rows)


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
