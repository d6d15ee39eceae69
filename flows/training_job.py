"""A training that is asked for, its record in MLflow, and the registration of what comes out of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmseg_core.errors import InputError
from cmseg_core.schema import Frozen
from cmseg_core.tracking.registry import CHALLENGER, MODEL_NAMES, SUFFIXES, ResolvedModel, Role, register_file
from cmseg_core.tracking.runs import TrainingRun, training_run
from flows.material import Material
from flows.training_record import record_material
from tasks.request import StoreAddress


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
def tracked(job: TrainingJob, role: Role, config: dict[str, Any], resume: str | None = None) -> Iterator[TrainingRun]:
    """Open the run of a training in MLflow, or that of an earlier command, with its settings and its data noted."""
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


def registered(
    job: TrainingJob, role: Role, run: TrainingRun, scores: dict[str, Any], save: Callable[[Path], object]
) -> Trained:
    """Save a model, copy it to where the job wants it, and register it: as challenger, or as that of a case."""
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


def figures_of(row: dict[str, Any]) -> str:
    """What people are told of an epoch."""
    shown = {k: v for k, v in row.items() if isinstance(v, float) and k in ("loss", "mean_iou", "iou", "seconds")}
    return ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in shown.items())
