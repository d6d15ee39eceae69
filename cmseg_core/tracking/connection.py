"""Connections to MLflow: quiet, without telemetry, and without global state.

MLflow is imported inside functions throughout this package: the import takes 1.4 s, and processing an acquisition with
packaged models or model files never needs it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cmseg_core.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # By default a server that is away is asked for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_ready: set[str] = set()


def default_tracking_uri(workspace: str | Path) -> str:
    """URI of the SQLite file that holds runs and models of a workspace without an MLflow server."""
    return f"{SQLITE}{Path(workspace).absolute() / 'mlflow.db'}"


def connect(tracking_uri: str) -> MlflowClient:
    """A client of the tracking server and registry at `tracking_uri`, with its tables made where absent."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if tracking_uri.startswith(SQLITE) and tracking_uri not in _ready:
        with reported(tracking_uri), _alone(database(tracking_uri)):
            MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri).search_experiments(max_results=1)
        _ready.add(tracking_uri)
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def database(tracking_uri: str) -> Path:
    """Path of the SQLite file of a ``sqlite:///`` URI."""
    return Path(tracking_uri.removeprefix(SQLITE))


def artifact_location(tracking_uri: str) -> str | None:
    """Where artifacts of a new experiment go: beside the SQLite file; None leaves it to the server."""
    if not tracking_uri.startswith(SQLITE):
        return None
    return (database(tracking_uri).absolute().parent / "mlartifacts").as_uri()


def experiment_id(client: MlflowClient, tracking_uri: str, name: str) -> str:
    """Id of the experiment called `name`, which is made where absent."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location(tracking_uri))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # made by a neighbour a moment ago
            if found is None:
                raise
    return found.experiment_id


@contextmanager
def reported(subject: object) -> Iterator[None]:
    """Turn MLflow's errors into `InputError` for what is not there or not valid, and `ConnectionError` for the rest."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        line = str(error).strip().splitlines()[0]
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise InputError(subject, line, "see `cmseg models list` for what there is") from error
        raise ConnectionError(f"{subject}: {line}") from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time make the tables: two at once fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(path, f"cannot be written ({error.strerror})", "choose another workspace") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
