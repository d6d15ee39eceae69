"""Training on labelled acquisitions: tracked in MLflow, registered as a challenger."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.evaluation.tables import class_table
from cmseg_core.schema import Frozen, PipelineConfig, Taxonomy, Workspace, first_problem
from cmseg_core.tracking.registry import (
    CHALLENGER,
    MODEL_NAMES,
    SUFFIXES,
    ResolvedModel,
    Role,
    register_file,
    resolve_model,
)
from cmseg_core.tracking.runs import TrainingRun, end_run, training_run
from flows.console import DONE, Console
from flows.environment import prepare
from flows.material import Material, Report, find_material, find_validation, read_case, read_cells, read_fields
from flows.places import store_address, tracking_uri
from flows.training_record import record_material, record_outcome
from flows.unfinished import UnfinishedTraining, unfinished
from tasks.request import StoreAddress

if TYPE_CHECKING:  # the numeric libraries read the environment, which is prepared once the material is known
    from cmseg_core.organelles.dataset import LabelledCell
    from cmseg_core.organelles.model import OrganelleModel
    from cmseg_core.organelles.training import TrainingConfig


class Trained(Frozen):
    """The outcome of a training.

    Attributes
    ----------
    model : str
        ``models:/name/version``.
    run_id : str
        Run in MLflow.
    scores : dict
        On the validation cells: ``mean_iou``, ``iou`` by class; empty where there was no validation.
    """

    model: str
    run_id: str
    scores: dict[str, Any]


@dataclass(frozen=True)
class TrainingJob:
    """What to train on and where the outcome goes.

    Attributes
    ----------
    material : Material
    validation : Material, optional
        By default a fifth of `material`.
    store : StoreAddress
        Where data sets are.
    settings : dict
        Fields of the training's configuration that differ from the preset.
    preset : str
    initial : path, optional
        Model file whose weights a U-Net starts from.
    case : int, optional
        Of a cross-validation: leaves out the cells that the case is scored with.
    out : path, optional
        File that the model is written to, besides the registry.
    tracking_uri : str
    workspace : Path
        Where an unfinished training keeps its state.
    max_memory_gb : float
    fresh : bool
        Start anew what an earlier command left unfinished.
    unet : ResolvedModel, optional
        Whose labels a stage classifier learns from too.
    """

    material: Material
    validation: Material | None
    store: StoreAddress
    settings: dict[str, Any]
    preset: str
    initial: Path | None
    case: int | None
    out: Path | None
    tracking_uri: str
    workspace: Path
    max_memory_gb: float
    fresh: bool
    unet: ResolvedModel | None = None


def train_local(
    console: Console,
    model: Role,
    dataset: str,
    *,
    preset: str,
    config: Path | None,
    validation: str | None,
    initial: str | None,
    case: int | None,
    all_cases: bool,
    out: Path | None,
    fresh: bool,
    changes: dict[str, Any],
    unet: str | None = None,
) -> int:
    """Train as ``cmseg train`` is asked to, and print the scores.

    Raises
    ------
    InputError
        Where the data set, the settings or the output file cannot be used.
    """
    # Images are prepared as the preset has them; score such a model with the same preset of the pipeline.
    workspace, pipeline = Workspace(), PipelineConfig(preset="paper") if preset == "paper" else PipelineConfig()
    settings = {**(_settings(config) if config else {}), **changes}
    check_out(out, model)
    if case is not None or all_cases:
        _check_cases(model, case, all_cases, validation, out)
    store = store_address(workspace)
    material = find_material(dataset, store.open, pipeline)
    kept = find_validation(validation, store.open, pipeline)
    if kept is not None and kept.facts and kept.taxonomy.names != material.taxonomy.names:
        raise _other_classes(validation, kept.taxonomy, material.taxonomy)
    prepare(workspace, training=True)
    uri = tracking_uri(workspace)
    job = TrainingJob(
        material=material,
        validation=kept,
        store=store,
        settings=settings,
        preset=preset,
        initial=None if initial is None else _start(initial, model, material.taxonomy, uri, workspace),
        case=case,
        out=out,
        tracking_uri=uri,
        workspace=workspace.workspace,
        max_memory_gb=workspace.max_memory_gb,
        fresh=fresh,
        unet=None if unet is None else _labeller(unet, model, uri, workspace),
    )
    try:
        if all_cases:
            from flows.cross_validate import cross_validate

            document, text = cross_validate(job, pipeline, console)
            console.result(document, text)
            return DONE
        if model == "unet":
            trained = train_unet(job, pipeline, console)
        else:
            trained = (train_sam_model if model == "sam" else train_stage_model)(job, pipeline, console.say)
    except ValidationError as error:
        mend = "use the names and ranges of the training's settings"
        raise InputError(config or "training", first_problem(error), mend) from error
    console.result(trained.model_dump(mode="json"), _described(trained))
    return DONE


def _check_cases(model: Role, case: int | None, all_cases: bool, validation: str | None, out: Path | None) -> None:
    option = "--all-cases" if all_cases else "--case"
    if model != "unet":
        raise InputError(option, f"cannot be used with --model {model}", "leave it out")
    if validation is not None:
        raise InputError(option, "chooses the cells for validation itself", "leave --validation out")
    if all_cases and (case is not None or out is not None):
        raise InputError(
            option, "trains a model for each case", "leave --case and --out out; the registry has them all"
        )


def _start(initial: str, role: Role, taxonomy: Taxonomy, uri: str, workspace: Workspace) -> Path:
    from cmseg_core.organelles.model import load_model

    if role != "unet":
        raise InputError("--initial", f"cannot be used with --model {role}", "leave it out: it trains from nothing")
    path = resolve_model(initial, role, uri, workspace.workspace / "models").path
    known = load_model(path).taxonomy  # a damaged file is found before anything is read
    if known.names != taxonomy.names:
        raise _other_classes(initial, known, taxonomy)
    return path


def _other_classes(subject: object, known: Taxonomy, wanted: Taxonomy) -> InputError:
    mend = f"the data set has {', '.join(wanted.names)}: give one of the same classes"
    return InputError(subject, f"knows the classes {', '.join(known.names)}", mend)


def _labeller(unet: str, role: Role, uri: str, workspace: Workspace) -> ResolvedModel:
    if role != "stage":
        raise InputError("--unet", f"cannot be used with --model {role}", "leave it out")
    return resolve_model(unet, "unet", uri, workspace.workspace / "models")


def _settings(path: Path) -> dict[str, Any]:
    mend = "give a mapping of settings, for example {epochs: 5}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(path, f"cannot be read ({error})", mend) from error
    if not isinstance(content, dict):
        raise InputError(path, "does not hold a mapping", mend)
    return content


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
    with _tracked(job, "unet", config.model_dump(mode="json"), broken_off) as run, console.gauge(name) as bar:
        place.write("run", {"run_id": run.run_id})

        def on_epoch(row: dict[str, Any]) -> None:
            run.log_metrics({k: v for k, v in row.items() if k not in ("epoch", "epochs")}, step=row["epoch"])
            console.say(f"{_epoch(row)}: {_figures(row)}")

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
        kept = replace(job, out=place.model)
        trained = _registered(kept, "unet", run, scores, partial(save_model, done.model))
        record_outcome(run, done.model, unseen, pipeline, console.say)
        return trained


def train_sam_model(job: TrainingJob, pipeline: PipelineConfig, report: Report) -> Trained:
    """Train the SAM that finds cells, on the working grid of the pipeline.

    Raises
    ------
    InputError
        Where the data set, the settings or the output file cannot be used.
    """
    from cmseg_core.foreground import save_sam
    from cmseg_core.foreground.training import SamTrainingConfig, train_sam

    config = SamTrainingConfig.model_validate(job.settings)
    fields, held_out = read_fields(job.material, job.validation, pipeline, report)
    report(f"training on {len(fields)} fields, validation on {len(held_out)}")
    with _tracked(job, "sam", config.model_dump(mode="json")) as run:

        def on_epoch(row: dict[str, Any]) -> None:
            run.log_metrics({k: v for k, v in row.items() if k != "step"}, step=row["step"])
            report(f"step {row['step']} of {config.steps}: {_figures(row)}")

        trained = train_sam(fields, config, validation=held_out, on_epoch=on_epoch)
        last = trained.history[-1]
        scores = {"mask_iou": last["iou"]} if "iou" in last else {}
        facts = {"training": config.model_dump(mode="json"), "fields": len(fields), **scores}
        save = partial(save_sam, trained.network, trained.architecture, facts=facts)
        return _registered(job, "sam", run, scores, save)


def train_stage_model(job: TrainingJob, pipeline: PipelineConfig, report: Report) -> Trained:
    """Train the classifier of the cell-cycle stage.

    Raises
    ------
    InputError
        Where the data set, the settings or the output file cannot be used.
    """
    from cmseg_core.evaluation.stages import described, score_classifier
    from cmseg_core.morphology.stage_classifier import save_classifier
    from cmseg_core.morphology.stage_training import StageTrainingConfig, train_classifier
    from flows.cell_cycle import read_staged

    config = StageTrainingConfig.model_validate(job.settings)
    cells, held_out = read_staged(job.material, job.validation, job.store.open, pipeline, report, job.unet)
    report(f"training on {len(cells)} cells, validation on {len(held_out)}")
    with _tracked(job, "stage", config.model_dump(mode="json")) as run:
        classifier = train_classifier(cells, config, job.material.taxonomy)
        scores: dict[str, Any] = {}
        if held_out:
            full = score_classifier(classifier, held_out, job.material.taxonomy)
            scores = {name: full[name] for name in ("accuracy", "mean_recall", "calibration_error")}
            scores["accuracy_of_rule"] = full["rule"]["accuracy"]
            run.log_metrics({**scores, "recall": full["recall"]})
            report(described(full))
            with tempfile.TemporaryDirectory() as folder:
                for name, text in (("stages.txt", described(full)), ("stages.json", json.dumps(full, indent=1))):
                    Path(folder, name).write_text(text + "\n", encoding="utf-8")
                    run.log_artifact(Path(folder, name))
            metadata = {**classifier.metadata, "validation": {"cells": len(held_out), **scores}}
            classifier = classifier.model_copy(update={"metadata": metadata})
        return _registered(job, "stage", run, scores, partial(save_classifier, classifier))


def _described(trained: Trained) -> str:
    lines = [f"{trained.model} (run {trained.run_id})"]
    if "iou" in trained.scores:
        lines += ["", class_table({"validation iou": trained.scores["iou"]})]
    elif trained.scores:
        lines += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in trained.scores.items()]
    else:
        lines.append("not scored: too few cells to keep some for validation")
    return "\n".join(lines)


def check_out(out: Path | None, role: Role) -> None:
    """Raise `InputError` before hours of training where the result could not be written."""
    if out is None:
        return
    if out.suffix not in SUFFIXES[role]:
        raise InputError(out, "is not a name for a model", f"let it end in {' or '.join(SUFFIXES[role])}")
    if out.exists():
        raise InputError(out, "exists", "name a new file, or remove it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise InputError(out, f"cannot be written ({error.strerror})", "choose a folder that can be written") from error


@contextmanager
def _tracked(job: TrainingJob, role: Role, config: dict[str, Any], resume: str | None = None) -> Iterator[TrainingRun]:
    params = {
        **job.material.facts,
        "preset": job.preset,
        **({} if job.case is None else {"case": job.case}),
        "initial": str(job.initial or "nothing"),
        **({} if job.unet is None else {"unet": job.unet.reference, "unet_sha256": job.unet.sha256}),
        **config,
    }
    name = job.material.name
    with training_run(job.tracking_uri, MODEL_NAMES[role], name=name, params=params, resume=resume) as run:
        record_material(run, job.material, job.validation)
        yield run


def _registered(
    job: TrainingJob, role: Role, run: TrainingRun, scores: dict[str, Any], save: Callable[[Path], object]
) -> Trained:
    name = MODEL_NAMES[role]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}{SUFFIXES[role][0]}")
        save(path)
        if job.out is not None:
            copy_whole(path, job.out)
        version = register_file(
            path,
            name,
            role,
            job.tracking_uri,
            alias=CHALLENGER if job.case is None else f"case-{job.case}",
            run_id=run.run_id,
        )
    return Trained(model=f"models:/{name}/{version}", run_id=run.run_id, scores=scores)


def copy_whole(path: Path, out: Path) -> None:
    """Copy by way of a temporary name, so that `out` is whole or absent."""
    staged = out.with_name(f".{out.name}.partial")
    shutil.copyfile(path, staged)
    staged.replace(out)


def _epoch(row: dict[str, Any]) -> str:
    """Which epoch it is, and of how many unless the clock ends the training."""
    from cmseg_core.organelles.training import UNTIL_THE_CLOCK

    return f"epoch {row['epoch']}" + ("" if row["epochs"] == UNTIL_THE_CLOCK else f" of {row['epochs']}")


def _figures(row: dict[str, Any]) -> str:
    shown = {k: v for k, v in row.items() if isinstance(v, float) and k in ("loss", "mean_iou", "iou", "seconds")}
    return ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in shown.items())
