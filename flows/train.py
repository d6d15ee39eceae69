"""`cmseg train`: what is asked for is checked before anything is read, and the training of the model's role runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.evaluation.tables import class_table
from cmseg_core.schema import PipelineConfig, Taxonomy, Workspace, first_problem
from cmseg_core.tracking.registry import ResolvedModel, Role, resolve_model
from flows.console import DONE, Console
from flows.environment import prepare
from flows.material import find_material, find_validation
from flows.places import store_address, tracking_uri
from flows.train_sam import train_sam_model
from flows.train_stage import train_stage_model
from flows.train_unet import train_unet
from flows.training_job import Trained, TrainingJob, check_out


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
    if role == "stage":
        raise InputError("--initial", "cannot be used with --model stage", "leave it out: it trains from nothing")
    path = resolve_model(initial, role, uri, workspace.workspace / "models").path
    if role == "sam":
        return path
    from cmseg_core.organelles.model import load_model

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


def _described(trained: Trained) -> str:
    lines = [f"{trained.model} (run {trained.run_id})"]
    if "iou" in trained.scores:
        lines += ["", class_table({"validation iou": trained.scores["iou"]})]
    elif trained.scores:
        lines += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in trained.scores.items()]
    else:
        lines.append("not scored: too few cells to keep some for validation")
    return "\n".join(lines)
