"""Prefect on loopback: its server with the pages that people watch, and a worker for the deployed flows."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
from pydantic import SecretStr

from cmseg_core.errors import InputError
from deployments.mail import PASSWORD
from deployments.processes import LOOPBACK
from deployments.service import Service, answer

USER = "cmseg"
POOL = "cmseg"
DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
logger = logging.getLogger("cmseg.supervisor")

ENDED = ("COMPLETED", "FAILED", "CRASHED")
"""How a run ends by itself; one that would begin beside another night is cancelled, and never was one."""
_UNDER_WAY = ("PENDING", "RUNNING", "CANCELLING")
_WAITING = "PAUSED"
"""For a person's answer, for which nobody waits before the services end."""
_GONE = "its process was gone"
_PROGRAM = (sys.executable, "-m", "prefect")


def prefect_service(
    folder: Path, port: int, *, password: str, database: str, log: Path, mail_password: SecretStr | None = None
) -> Service:
    """The server.

    Parameters
    ----------
    folder : path
    port : int
    password : str
        Of the user ``cmseg``.
    database : str
        Address of its database, with the password.
    log : path
    mail_password : SecretStr, optional
        With which it sends alerts by e-mail.
    """
    return Service(
        name="Prefect",
        command=(*_PROGRAM, "server", "start", "--host", LOOPBACK, "--port", str(port)),
        folder=folder,
        log=log,
        healthy=lambda: answer(f"{api_url(port)}/admin/version", auth=(USER, password)) == 200,
        environment={
            **client_environment(port, password),
            "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{password}",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            **({PASSWORD: mail_password.get_secret_value()} if mail_password else {}),
        },
    )


def worker_service(
    folder: Path, port: int, *, password: str, environment: Mapping[str, str], named: Mapping[str, str],
    at_once: int, log: Path
) -> Service:  # fmt: skip
    """A worker.

    Before each start the work pool and the deployments that it serves are brought up to date, and what a worker before
    it lost is scheduled anew.

    Parameters
    ----------
    folder : path
    port : int
        Of the server.
    password : str
        Of the server's user ``cmseg``.
    environment : mapping
        What the flows that it starts find in their environment.
    named : mapping
        Variables that the file of the deployments names.
    at_once : int
        Flows that it runs at a time.
    log : path
    """
    known = {
        **client_environment(port, password),
        **environment,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # What the server answers while its database is started again.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        # What the flows tell stands in the pages of their runs.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "cmseg",
        "PREFECT_LOGGING_LEVEL": "INFO",
    }
    name = "cmseg-worker"
    return Service(
        name="worker",
        command=(
            *_PROGRAM,
            "worker",
            "start",
            "--pool",
            POOL,
            "--type",
            "process",
            "--name",
            name,
            "--limit",
            str(at_once),
        ),  # fmt: skip
        folder=folder,
        log=log,
        healthy=lambda: PrefectApi(known).is_online(name),
        environment=known,
        prepare=lambda: _prepare({**known, **named}, folder, log, PrefectApi(known)),
        patience=30.0,
        leaves_work=True,
    )


def client_environment(port: int, password: str) -> dict[str, str]:
    """Variables under which this machine's commands reach the server."""
    return {"PREFECT_API_URL": api_url(port), "PREFECT_API_AUTH_STRING": f"{USER}:{password}"}


def api_url(port: int) -> str:
    """Address of the server's interface for programs."""
    return f"http://{LOOPBACK}:{port}/api"


def _prepare(environment: Mapping[str, str], folder: Path, log: Path, api: PrefectApi) -> None:
    deploy(environment, folder, log)
    for name in api.take_up_again():
        logger.warning("%s was broken off and goes on", name)
    api.pause(False)


def deploy(environment: Mapping[str, str], folder: Path, log: Path) -> None:
    """Make the work pool, and all that ``prefect.yaml`` and ``automations.yaml`` name, anew; safe to repeat.

    Raises
    ------
    InputError
        Where Prefect refuses one.
    """
    prefect = (*_PROGRAM, "--no-prompt")
    commands = (
        (*prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"),
        (*prefect, "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)),
        (sys.executable, "-m", "deployments.automations"),
    )
    for command in commands:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        with log.open("a", encoding="utf-8") as file:
            file.write(done.stdout + done.stderr)
        if done.returncode != 0:
            raise InputError("Prefect", "does not take the deployments of cmseg", f"look at {log}")


class PrefectApi:
    """What the stack asks of the server, past any proxy.

    Parameters
    ----------
    environment : mapping
        With ``PREFECT_API_URL`` and ``PREFECT_API_AUTH_STRING``.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        user, password = environment["PREFECT_API_AUTH_STRING"].split(":", 1)
        url = environment["PREFECT_API_URL"]
        self._client = httpx.Client(base_url=url, auth=(user, password), timeout=10.0, trust_env=False)

    def is_online(self, worker: str) -> bool:
        """Whether a worker has been heard of lately."""
        try:
            found = self._ask("POST", f"/work_pools/{POOL}/workers/filter", {})
        except httpx.HTTPError:
            return False
        return any(one["name"] == worker and one["status"] == "ONLINE" for one in found)

    def pause(self, paused: bool) -> None:
        """Give no more work to the workers, or give it again."""
        self._ask("PATCH", f"/work_pools/{POOL}", {"is_paused": paused})

    def under_way(self, states: tuple[str, ...] = _UNDER_WAY) -> list[dict[str, Any]]:
        """Runs that a worker has taken and that have not ended."""
        state = {"state": {"type": {"any_": states}}}
        return self._ask("POST", "/flow_runs/filter", {"flow_runs": state, "work_pools": {"name": {"any_": [POOL]}}})

    def last_ended(self, flow: str, deployment: str) -> dict[str, Any] | None:
        """The run of a deployment that ended last, other than by being cancelled; None where there is none."""
        asked = {
            "flow_runs": {"state": {"type": {"any_": list(ENDED)}}, "end_time": {"is_null_": False}},
            "flows": {"name": {"any_": [flow]}},
            "deployments": {"name": {"any_": [deployment]}},
        }
        found = self._ask("POST", "/flow_runs/filter", {**asked, "sort": "END_TIME_DESC", "limit": 1})
        return found[0] if found else None

    def take_up_again(self) -> list[str]:
        """Schedule anew the runs of this machine whose process is gone; returns their names.

        What they had computed is found again, so that only the rest is computed.
        """
        lost = [run for run in self.under_way((*_UNDER_WAY, _WAITING)) if not _lives(run.get("infrastructure_pid"))]
        for run in lost:
            within = {"parent_flow_run_id": {"any_": [run["id"]]}, "state": {"type": {"any_": _UNDER_WAY}}}
            for part in self._ask("POST", "/flow_runs/filter", {"flow_runs": within}):
                self._set_state(part, {"type": "CRASHED", "message": _GONE})
            self._set_state(run, {"type": "SCHEDULED", "name": "AwaitingRetry", "message": _GONE})
        return [run["name"] for run in lost]

    def _set_state(self, run: dict[str, Any], state: dict[str, Any]) -> None:
        self._ask("POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})

    def _ask(self, method: str, path: str, content: dict[str, Any]) -> Any:
        response = self._client.request(method, path, json=content)
        response.raise_for_status()
        return response.json() if response.content else None


def _lives(process: str | None) -> bool:
    """Whether a run's process, ``host:pid``, may live: always so for another machine's."""
    host, _, pid = (process or "").rpartition(":")
    if host not in ("", socket.gethostname()):
        return True
    try:
        return pid.isdigit() and "prefect" in " ".join(psutil.Process(int(pid)).cmdline())
    except psutil.Error:
        return False
