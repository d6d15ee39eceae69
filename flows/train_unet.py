"""Training of the organelle network, which goes on where an earlier command broke off."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cmseg_core.errors import InputError
from cmseg_core.schema import PipelineConfig
from cmseg_core.tracking.runs import end_run
from flows.console import Console
from flows.material import read_case, read_cells
from flows.training_job import Trained, TrainingJob, copy_whole, figures_of, registered, tracked
from flows.training_record import record_outcome
from flows.unfinished import UnfinishedTraining, unfinished

if TYPE_CHECKING:  # the numeric libraries read the environment, which is prepared once the material is known
    from cmseg_core.organelles.dataset import LabelledCell
    from cmseg_core.organelles.model import OrganelleModel
    from cmseg_core.organelles.training import TrainingConfig


def train_unet(job: TrainingJob, pipeline: PipelineConfig, console: Console) -> Trained:
    """Train the organelle network.

    Raises
    ------
    InputError
        Where the data set, the settings or the output file cannot be used.
    """
    if job.case is None:
        cells, held_out = read_cells(job.material, job.validation, job.store.open, pipeline, console.say)
        unseen = held_out
    else:  # what a case is scored with may not choose its weights
        (cells, unseen), held_out = read_case(job.material, job.case, job.store.open, pipeline, console.say), []
    trained, place = train_kept(job, cells, held_out, unseen, pipeline, console)
    if job.out is not None:
        copy_whole(place.model, job.out)
    place.remove()
    return trained


def train_kept(
    job: TrainingJob,
    cells: list[LabelledCell],
    held_out: list[LabelledCell],
    unseen: list[LabelledCell],
    pipeline: PipelineConfig,
    console: Console,
) -> tuple[Trained, UnfinishedTraining]:
    """Train the organelle network on some cells, going on where an earlier command of the same training broke off.

    Parameters
    ----------
    job : TrainingJob
    cells, held_out : list of LabelledCell
        To train on, and to choose the weights with.
    unseen : list of LabelledCell
        Scored for the record of the training: `held_out`, or what a case leaves out.
    pipeline : PipelineConfig
    console : Console

    Returns
    -------
    trained : Trained
    place : UnfinishedTraining
        Holds the model, and the outcome for a command that asks for the same again, until the caller removes it.

    Raises
    ------
    InputError
        Where the cells or the settings cannot be used, or another process is at the same training.
    """
    from cmseg_core.organelles.checkpoint import training_key
    from cmseg_core.organelles.epochs import TrainingDiverged
    from cmseg_core.organelles.labels import check_learnable
    from cmseg_core.organelles.model import load_model
    from cmseg_core.organelles.training import TrainingConfig

    config = TrainingConfig.of(job.preset, fields=job.material.fields, **job.settings)
    initial = None if job.initial is None else load_model(job.initial)
    if initial is None:  # a model to start from knows its classes already
        check_learnable([*cells, *unseen], job.material.taxonomy, job.material.facts["dataset"])
    key = training_key(cells, held_out, config, job.material.taxonomy, pipeline.preprocess, initial)
    with unfinished(job.workspace, key) as place:
        run = place.read("run")
        if job.fresh and run is not None:
            end_run(job.tracking_uri, run["run_id"])
        if job.fresh:
            place.clear()
        done = place.read("trained")
        if done is not None:
            console.say(f"{job.material.name}: trained already, as {done['model']}")
            return Trained.model_validate(done), place
        try:
            trained = _train_at(place, job, config, cells, held_out, unseen, pipeline, initial, console)
        except InputError as error:
            if isinstance(error, TrainingDiverged) or not place.checkpoint.exists():
                place.remove()  # nothing to go on with; what was reached before some other complaint is kept
            raise
        place.write("trained", trained.model_dump(mode="json"))
        place.checkpoint.unlink(missing_ok=True)
        return trained, place


def _train_at(
    place: UnfinishedTraining,
    job: TrainingJob,
    config: TrainingConfig,
    cells: list[LabelledCell],
    held_out: list[LabelledCell],
    unseen: list[LabelledCell],
    pipeline: PipelineConfig,
    initial: OrganelleModel | None,
    console: Console,
) -> Trained:
    from cmseg_core.organelles.model import save_model
    from cmseg_core.organelles.training import train

    name = job.material.name
    console.say(f"training on {len(cells)} cells, validation on {len(held_out)}")
    broken_off = (place.read("run") or {}).get("run_id")
    with tracked(job, "unet", config.model_dump(mode="json"), broken_off) as run, console.gauge(name) as bar:
        place.write("run", {"run_id": run.run_id})

        def on_epoch(row: dict[str, Any]) -> None:
            run.log_metrics({k: v for k, v in row.items() if k not in ("epoch", "epochs")}, step=row["epoch"])
            console.say(f"{_epoch(row)}: {figures_of(row)}")

        def on_step(row: dict[str, Any]) -> None:
            at = f"{_epoch(row)}, step {row['step']} of {row['steps']}, loss {row['loss']:.3f}"
            bar(row["share"], at)

        done = train(
            cells,
            config,
            job.material.taxonomy,
            preprocess=pipeline.preprocess,
            validation=held_out,
            initial=initial,
            on_epoch=on_epoch,
            on_step=on_step,
            say=lambda line: console.say(f"{name}: {line}"),
            checkpoint=place.checkpoint,
            max_memory_gb=job.max_memory_gb,
        )
        best = done.model.metadata["best"]
        scores = {key: best[key] for key in ("mean_iou", "iou") if key in best}
        known = place.read("registered")  # by an earlier command, which then broke off
        if known is None:
            kept = replace(job, out=place.model)
            known = registered(kept, "unet", run, scores, partial(save_model, done.model)).model_dump(mode="json")
            place.write("registered", known)
        record_outcome(run, done.model, unseen, pipeline, console.say)
        return Trained.model_validate(known)


def _epoch(row: dict[str, Any]) -> str:
    """Which epoch it is, and of how many unless the clock ends the training."""
    from cmseg_core.organelles.training import UNTIL_THE_CLOCK

    return f"epoch {row['epoch']}" + ("" if row["epochs"] == UNTIL_THE_CLOCK else f" of {row['epochs']}")
