"""What a run is told of its circumstances: the code, the data it learns from, and the load of the machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import cmseg_core

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

DIGEST = 32
"""Digits of a digest that MLflow is given: it takes no more than 36. The whole one is in the profile."""


def code_tags() -> dict[str, str]:
    """Version of cmseg, and the commit where it runs from a checkout."""
    from mlflow.utils.git_utils import get_git_commit
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE

    tags = {"cmseg.version": cmseg_core.__version__, MLFLOW_SOURCE_NAME: "cmseg", MLFLOW_SOURCE_TYPE: "LOCAL"}
    commit = get_git_commit(str(Path(cmseg_core.__file__).parent))
    return tags if commit is None else {**tags, MLFLOW_GIT_COMMIT: commit}


def dataset_input(name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> DatasetInput:
    """A data set as MLflow knows it.

    Parameters
    ----------
    name : str
    digest : str
        Hash of its content.
    source : str
        Path or ``s3://`` address.
    context : str
        ``training`` or ``validation``.
    profile : mapping
        What to say of its content; JSON values.

    Returns
    -------
    mlflow.entities.DatasetInput
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    dataset = Dataset(
        name=name,
        digest=digest[:DIGEST],
        source_type=urlsplit(source).scheme or "local",
        source=json.dumps({"uri": source}),
        profile=json.dumps({**profile, "digest": digest}),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])


@contextmanager
def system_metrics(tracking_uri: str, run_id: str) -> Iterator[None]:
    """Log the load of processor, memory, disk, network and GPU with a run, every ten seconds.

    MLflow's monitor in a thread, without its switch for the whole process. It goes on where an earlier one of the same
    run ended. What it has looked at last is logged too, so that a short run has its figures.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # Where there is no GPU, or a run has just been ended, it would say so.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=tracking_uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
        monitor.publish_metrics(monitor.aggregate_metrics())
        monitor.mlflow_logger.flush()
