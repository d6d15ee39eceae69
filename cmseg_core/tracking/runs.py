"""Training runs: settings, figures of each epoch, and files."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmseg_core.tracking.circumstances import code_tags, dataset_input, system_metrics
from cmseg_core.tracking.connection import connect, experiment_id, reported

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAMETERS_AT_ONCE = 100
"""MLflow takes no more in one request."""


class TrainingRun:
    """A run that is being written; from `training_run`.

    Attributes
    ----------
    run_id : str
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings; nested mappings become dotted names."""
        from mlflow.entities import Param

        entries = [Param(name, str(value)) for name, value in flatten(params).items()]
        with reported(self.run_id):
            for start in range(0, len(entries), PARAMETERS_AT_ONCE):
                self._client.log_batch(self.run_id, params=entries[start : start + PARAMETERS_AT_ONCE])

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Log figures of one step (epoch); nested mappings become dotted names.

        What is None or not finite is left out: no class was there to score.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        finite = {name: value for name, value in flatten(metrics).items() if value is not None and math.isfinite(value)}
        with reported(self.run_id):
            self._client.log_batch(
                self.run_id, metrics=[Metric(name, float(value), now, step) for name, value in finite.items()]
            )

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a file with the run."""
        with reported(self.run_id):
            self._client.log_artifact(self.run_id, str(path), folder)

    def log_artifacts(self, folder: str | Path) -> None:
        """Keep the files and folders within a folder with the run."""
        with reported(self.run_id):
            self._client.log_artifacts(self.run_id, str(folder))

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Say what the run learns from or is validated with: see `dataset_input`."""
        with reported(self.run_id):
            self._client.log_inputs(self.run_id, [dataset_input(name, digest, source, context, profile)])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        with reported(self.run_id):
            for name, value in tags.items():
                self._client.set_tag(self.run_id, name, value)


@contextmanager
def training_run(
    tracking_uri: str,
    experiment: str,
    *,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    resume: str | None = None,
) -> Iterator[TrainingRun]:
    """Start a run, and end it as finished, failed (an error) or killed (an interruption).

    The version of the code is noted in its tags, and the load of the machine in its metrics (``system/``).

    Parameters
    ----------
    tracking_uri : str
    experiment : str
        Made where absent.
    name : str, optional
    params, tags : mapping, optional
    resume : str, optional
        Id of a run that broke off, to go on with; where it is gone a new one is started.

    Examples
    --------
    >>> with training_run(uri, "cmseg-unet", params={"seed": 1}) as run:
    ...     run.log_metrics({"loss": 0.5}, step=1)
    """
    client = connect(tracking_uri)
    resumed = resume is not None and _taken_up(client, resume)
    if resumed:
        run = TrainingRun(client, str(resume))
    else:
        with reported(experiment):
            where = experiment_id(client, tracking_uri, experiment)
            started = client.create_run(where, run_name=name, tags={**code_tags(), **(tags or {})})
        run = TrainingRun(client, started.info.run_id)
    status = "FAILED"
    try:
        if not resumed:
            run.log_params(params or {})
        with system_metrics(tracking_uri, run.run_id):
            yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run.run_id, status=status)


def _taken_up(client: MlflowClient, run_id: str) -> bool:
    """Mark a run as running again; False where it is not there any more."""
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            return False
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise ConnectionError(f"{run_id}: {error}") from error
        return False
    client.update_run(run_id, status="RUNNING")
    return True


def end_run(tracking_uri: str, run_id: str) -> None:
    """End a run that broke off and will not be taken up, as killed."""
    client = connect(tracking_uri)
    if _taken_up(client, run_id):
        client.set_terminated(run_id, status="KILLED")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
