"""Training on labelled acquisitions: tracked in MLflow, registered as a challenger."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmseg_core.errors import InputError
from cmseg_core.schema import Frozen, PipelineConfig
from cmseg_core.tracking.registry import CHALLENGER, MODEL_NAMES, SUFFIXES, Role, register_file
from cmseg_core.tracking.runs import TrainingRun, training_run
from flows.labelled import LabelledAcquisition, find_labelled, read_labelled

if TYPE_CHECKING:
    from cmseg_core.organelles.dataset import LabelledCell

EVERY = 5
"""Of so many acquisitions (or of so many cells, where there are fewer acquisitions) one is kept for validation."""
Report = Callable[[str], None]


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


class TrainingJob(Frozen):
    """What to train on and where the outcome goes.

    Attributes
    ----------
    dataset : path
        Folder of labelled acquisitions, or one of them.
    validation : path, optional
        Another such folder; by default a fifth of `dataset`.
    settings : dict
        Fields of the training's configuration that differ from the preset.
    preset : str
    out : path, optional
        File that the model is written to, besides the registry.
    tracking_uri : str
    """

    dataset: Path
    validation: Path | None
    settings: dict[str, Any]
    preset: str
    out: Path | None
    tracking_uri: str


def train_unet(job: TrainingJob, pipeline: PipelineConfig, report: Report) -> Trained:
    """Train the organelle network.

    Raises
    ------
    InputError
        Where the data set, the settings or the output file cannot be used.
    """
    from cmseg_core.organelles.model import save_model
    from cmseg_core.organelles.training import TrainingConfig, train

    check_out(job.out, "unet")
    config = TrainingConfig.of(job.preset, **job.settings)
    cells, held_out = _cells(job, pipeline, report)
    report(f"training on {len(cells)} cells, validation on {len(held_out)}")
    with _tracked(job, "unet", config.model_dump(mode="json")) as run:

        def on_epoch(row: dict[str, Any]) -> None:
            run.log_metrics({k: v for k, v in row.items() if k not in ("epoch", "epochs")}, step=row["epoch"])
            report(_epoch_line(row))

        done = train(
            cells, config, pipeline.taxonomy, preprocess=pipeline.preprocess, validation=held_out, on_epoch=on_epoch
        )
        best = done.model.metadata["best"]
        scores = {key: best[key] for key in ("mean_iou", "iou") if key in best}
        return _registered(job, "unet", run, scores, lambda path: save_model(done.model, path))


def train_sam_model(job: TrainingJob, pipeline: PipelineConfig, report: Report) -> Trained:
    """Train the SAM that finds cells, on the working grid of the pipeline.

    Raises
    ------
    InputError
        Where the data set, the settings or the output file cannot be used.
    """
    from cmseg_core.foreground.training import LabelledField, SamTrainingConfig, save_sam, train_sam
    from cmseg_core.preprocess.resample import resize, working_shape

    check_out(job.out, "sam")
    config = SamTrainingConfig.model_validate(job.settings)
    pixel_nm = pipeline.foreground.cell_diameter_nm / pipeline.foreground.cell_diameter_px
    fields = []
    for one in find_labelled(job.dataset):
        report(f"reading {one.name}")
        image, cells, _ = read_labelled(one, pipeline.preprocess)
        shape = working_shape(image.shape, one.voxel_size, pixel_nm)
        fields.append(
            LabelledField(
                image=resize(image, shape, "linear"), cells=resize(cells.astype("uint16"), shape, "nearest")
            )
        )
    report(f"training on {len(fields)} fields")
    rows: list[dict[str, Any]] = []
    with _tracked(job, "sam", config.model_dump(mode="json")) as run:

        def on_epoch(row: dict[str, Any]) -> None:
            rows.append(row)
            run.log_metrics({k: v for k, v in row.items() if isinstance(v, int | float)}, step=len(rows))
            report(_epoch_line(row))

        trained = train_sam(fields, config, on_epoch=on_epoch)
        scores = {k: v for k, v in (rows[-1] if rows else {}).items() if isinstance(v, int | float)}
        return _registered(job, "sam", run, scores, lambda path: save_sam(trained, path))


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


def _cells(
    job: TrainingJob, pipeline: PipelineConfig, report: Report
) -> tuple[list[LabelledCell], list[LabelledCell]]:
    """Cells to train on, and cells to validate with."""
    fields = find_labelled(job.dataset)
    if job.validation is not None:
        return _cut(fields, pipeline, report), _cut(find_labelled(job.validation), pipeline, report)
    if len(fields) >= EVERY:
        kept = [field for n, field in enumerate(fields) if (n + 1) % EVERY]
        return _cut(kept, pipeline, report), _cut(fields[EVERY - 1 :: EVERY], pipeline, report)
    cells = _cut(fields, pipeline, report)
    return [cell for n, cell in enumerate(cells) if (n + 1) % EVERY], cells[EVERY - 1 :: EVERY]


def _cut(
    fields: Sequence[LabelledAcquisition], pipeline: PipelineConfig, report: Report
) -> list[LabelledCell]:
    from cmseg_core.organelles.cutting import cut_cells

    cells = []
    for field in fields:
        report(f"cutting cells out of {field.name}")
        image, ids, organelles = read_labelled(field, pipeline.preprocess)
        margin = pipeline.organelles.margin_nm
        cells += cut_cells(image, ids, organelles, field.voxel_size, field.stages, margin, field.name)
    if not cells:
        raise InputError(fields[0].stack.parent, "holds no cell to learn from", "give a field with whole cells")
    return cells


@contextmanager
def _tracked(job: TrainingJob, role: Role, config: dict[str, Any]) -> Iterator[TrainingRun]:
    params = {"dataset": str(job.dataset.absolute()), "preset": job.preset, **config}
    with training_run(job.tracking_uri, MODEL_NAMES[role], name=job.dataset.absolute().name, params=params) as run:
        yield run


def _registered(
    job: TrainingJob, role: Role, run: TrainingRun, scores: dict[str, Any], save: Callable[[Path], object]
) -> Trained:
    name = MODEL_NAMES[role]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}{SUFFIXES[role][0]}"
        save(path)
        if job.out is not None:
            _copy(path, job.out)
        version = register_file(path, name, role, job.tracking_uri, alias=CHALLENGER, run_id=run.run_id)
    return Trained(model=f"models:/{name}/{version}", run_id=run.run_id, scores=scores)


def _copy(path: Path, out: Path) -> None:
    """Copy by way of a temporary name, so that `out` is whole or absent."""
    import shutil

    partial = out.with_name(f".{out.name}.partial")
    shutil.copyfile(path, partial)
    partial.replace(out)


def _epoch_line(row: dict[str, Any]) -> str:
    figures = {k: v for k, v in row.items() if isinstance(v, float) and k in ("loss", "mean_iou", "iou", "seconds")}
    text = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in figures.items())
    return f"epoch {row.get('epoch', '?')} of {row.get('epochs', '?')}: {text}"
