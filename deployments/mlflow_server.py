"""The MLflow server on loopback: runs and models in PostgreSQL, their files in the object store."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from deployments.private import write_private
from deployments.processes import LOOPBACK
from deployments.service import Service, answer

USER = "cmseg"


def mlflow_service(
    folder: Path,
    port: int,
    *,
    password: str,
    signing_key: str,
    database: str,
    artifacts: str,
    store: Mapping[str, str],
    log: Path,
) -> Service:
    """The service, which hands files out itself: who uses it needs no key of the object store.

    Parameters
    ----------
    folder : path
        Holds its private settings.
    port : int
    password : str
        Of the user ``cmseg``.
    signing_key : str
        For the forms of its pages.
    database : str
        Address of its database, with the password.
    artifacts : str
        ``s3://bucket/prefix`` of its files.
    store : mapping
        Variables under which it reaches the object store.
    log : path
    """
    config = folder / "mlflow-auth.ini"
    known = f"http://{LOOPBACK}:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
    options = ("--host", LOOPBACK, "--port", str(port), "--workers", "1", "--app-name", "basic-auth")
    return Service(
        name="MLflow",
        command=(sys.executable, "-m", "mlflow", "server", *options, "--artifacts-destination", artifacts),
        folder=folder,
        log=log,
        healthy=lambda: answer(known, auth=(USER, password)) == 200,
        environment={
            **store,
            "MLFLOW_BACKEND_STORE_URI": database,
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_USERNAME": USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": signing_key,
            # Two processes and 500 MB in place of fifteen and 3 GB.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
        },
        prepare=lambda: _write_config(config, database),
    )


def client_environment(port: int, password: str) -> dict[str, str]:
    """Variables under which this machine's commands reach the service."""
    address = f"http://{LOOPBACK}:{port}"
    return {
        "CMSEG_MLFLOW_TRACKING_URI": address,
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": password,
    }


def _write_config(path: Path, database: str) -> None:
    # "%" has a meaning of its own in this kind of file.
    text = f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {database.replace('%', '%%')}\n"
    write_private(path, text)
