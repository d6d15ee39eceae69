"""The local stack from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TypedDict

import psutil
from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.schema import Workspace, first_problem
from deployments.processes import port_is_free
from deployments.stack import Stack, StackSettings
from deployments.supervisor import ServiceState, read_state
from flows.console import DONE, Console
from flows.environment import prepare

_START_SECONDS = 900.0
_TOLD = {"draining": "waits for running flows to end; `cmseg down --now` breaks them off"}


def up(console: Console) -> int:
    """Start the stack, and say where it is; a stack that is up is left alone."""
    workspace = Workspace()
    wanted = stack_settings()
    stack = Stack(workspace.workspace)
    if not stack.is_up():
        prepare(workspace)
        _check_ports(wanted)
        _launch(stack, console)
    settings = stack.settings()
    if settings != wanted:
        console.say("the services are up with other settings; `cmseg down`, then `cmseg up`, to change them")
    known = {name: value for group in stack.environment() for name, value in group.items()}
    pages = {"Prefect": known["PREFECT_API_URL"].removesuffix("/api"), "MLflow": known["MLFLOW_TRACKING_URI"]}
    document = {"pages": pages, "store": known["CMSEG_STORE"], "logs": str(stack.logs),
                "night": settings.night, "time_zone": settings.time_zone}  # fmt: skip
    text = (
        f"Prefect  {pages['Prefect']}\nMLflow   {pages['MLflow']}\n"
        f"The user is cmseg, the passwords stand in {stack.folder / 'secrets.json'}; logs in {stack.logs}.\n"
        f"The night begins at {settings.night} {settings.time_zone}. Submit with `cmseg submit`, end with `cmseg down`."
    )
    console.result(document, text)
    return DONE


def down(console: Console, *, now: bool) -> int:
    """End the stack: running flows first, unless they are to be broken off."""
    stack = Stack(Workspace().workspace)
    if not stack.is_up():
        console.result({"down": True}, "the services are down")
        return DONE
    state = read_state(stack.state)
    for _ in range(2 if now else 1):
        if state is not None:
            os.kill(state.pid, signal.SIGTERM)
        time.sleep(0.2)
    told = ""
    while stack.is_up():
        state = read_state(stack.state)
        if state and (phase := state.phase) != told:
            console.say(_TOLD.get(phase, phase))
            told = phase
        time.sleep(0.3)
    console.result({"down": True}, "the services are down; what they keep stays")
    return DONE


class ServiceReport(TypedDict):
    """A service: ``up``, ``down`` or ``starting``; how often it was restarted; memory and processor time of it and its
    children."""

    name: str
    state: str
    restarts: int
    bytes: int
    cpu_seconds: float


def service_states(workspace: Workspace) -> list[ServiceReport]:
    """The services of a workspace in the order of their start; none where they are down or never were."""
    stack = Stack(workspace.workspace)
    state = read_state(stack.state) if stack.is_up() else None
    return [_reported(service) for service in state.services] if state else []


def _reported(service: ServiceState) -> ServiceReport:
    running, family = "starting", []
    try:
        process = psutil.Process(service.pid) if service.pid else None
        if process is not None and process.create_time() == service.created:
            running, family = "up", [process, *process.children(recursive=True)]
    except psutil.Error:
        running = "down"
    used = [_used(process) for process in family]
    return {
        "name": service.name,
        "state": running,
        "restarts": service.restarts,
        "bytes": sum(memory for memory, _ in used),
        "cpu_seconds": round(sum(seconds for _, seconds in used), 2),
    }


def _used(process: psutil.Process) -> tuple[int, float]:
    """Memory and processor time of a process, with the time of the children that it saw end."""
    try:
        with process.oneshot():
            times = process.cpu_times()
            seconds = times.user + times.system + times.children_user + times.children_system
            return process.memory_info().rss, seconds
    except psutil.Error:  # a child that ended meanwhile says nothing about the service
        return 0, 0.0


def stack_settings() -> StackSettings:
    """The settings of the stack, from the environment.

    Raises
    ------
    InputError
        Where one of them is not valid.
    """
    try:
        return StackSettings()
    except ValidationError as error:
        raise InputError("the settings of the services", first_problem(error), "see docs/settings.md") from error


def _check_ports(settings: StackSettings) -> None:
    for variable, port in settings.ports.items():
        if not port_is_free(port):
            mend = f"end what listens there, or give another port with {variable}"
            raise InputError(f"port {port}", "is in use on 127.0.0.1", mend)


def _launch(stack: Stack, console: Console) -> None:
    """Start the supervisor as a process of its own, and wait until all is up."""
    with stack.held():  # made, and nobody else's
        pass
    descriptor = os.open(stack.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.supervisor", str(stack.workspace)],
            cwd=stack.folder,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    told: set[str] = set()
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        state = read_state(stack.state)
        mine = state if state is not None and state.pid == process.pid else None
        for service in mine.services if mine else ():
            if service.pid and service.name not in told:
                told.add(service.name)
                console.say(f"{service.name} is up")
        if mine and mine.phase == "up":
            return
        if process.poll() is not None:
            if mine and mine.phase == "failed":
                raise InputError("the services", mine.reason, mine.mend)
            raise InputError("the services", f"their supervisor ended ({process.returncode})", f"look at {stack.log}")
        time.sleep(0.2)
    raise InputError(stack.folder, "is not up after a quarter of an hour", f"look at {stack.log}")
