"""Training of the SAM that finds cells."""

from __future__ import annotations

from functools import partial
from typing import Any

from cmseg_core.schema import PipelineConfig
from flows.material import Report, read_parted_fields
from flows.training_job import Trained, TrainingJob, figures_of, registered, tracked


def train_sam_model(job: TrainingJob, pipeline: PipelineConfig, report: Report) -> Trained:
    """Train the SAM that finds cells, on the working grid of the pipeline.

    Raises
    ------
    InputError
        Where the data set, the settings or the output file cannot be used.
    """
    from cmseg_core.foreground.sam import load_sam, save_sam
    from cmseg_core.foreground.training import SamTrainingConfig, train_sam

    config = SamTrainingConfig.model_validate(job.settings)
    initial = None if job.initial is None else load_sam(job.initial)  # a damaged file is found before fields are read
    fields, held_out = read_parted_fields(job.material, job.validation, pipeline, report)
    report(f"training on {len(fields)} fields, validation on {len(held_out)}")
    with tracked(job, "sam", config.model_dump(mode="json")) as run:

        def on_epoch(row: dict[str, Any]) -> None:
            run.log_metrics({k: v for k, v in row.items() if k != "step"}, step=row["step"])
            report(f"step {row['step']} of {config.steps}: {figures_of(row)}")

        trained = train_sam(fields, config, validation=held_out, initial=initial, on_epoch=on_epoch)
        last = trained.history[-1]
        scores = {name: last[key] for name, key in (("mask_iou", "iou"), ("cell_iou", "cell_iou")) if key in last}
        names = [field.name for field in fields]
        facts = {"training": config.model_dump(mode="json"), "fields": len(fields), "names": names, **scores}
        save = partial(save_sam, trained.network, trained.architecture, facts=facts, head=trained.head)
        return registered(job, "sam", run, scores, save)
