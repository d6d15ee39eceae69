"""Training of the classifier of the cell-cycle stage."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from cmseg_core.schema import PipelineConfig
from flows.material import Report
from flows.training_job import Trained, TrainingJob, registered, tracked


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
    with tracked(job, "stage", config.model_dump(mode="json")) as run:
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
        return registered(job, "stage", run, scores, partial(save_classifier, classifier))
