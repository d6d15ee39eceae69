"""Keeps the services of the stack up: starts them in order, watches them, restarts what fails, ends them in order.

Run as ``python -m deployments.supervisor WORKSPACE``; ``cmseg up`` does. What it is at stands in ``state.json`` of the
stack's folder.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil

from cmseg_core.errors import InputError
from cmseg_core.schema import Frozen
from deployments import object_store, processes
from deployments.logs import rotate
from deployments.prefect_server import PrefectApi, client_environment
from deployments.private import write_private
from deployments.service import Process, Service
from deployments.stack import Stack, StackSettings

log = logging.getLogger("cmseg.supervisor")

LOOK_SECONDS = 1.0
"""Between two looks at whether every process lives."""
HEALTH_SECONDS = 20.0
"""Between two questions to each service."""
PATIENCE = 3
"""Questions in a row without an answer after which a service is restarted."""
DRAIN_PATIENCE = 300.0
"""Seconds without an answer of Prefect after which running flows are not waited for any more."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts to start a service that fails; they grow from one."""

Phase = Literal["starting", "up", "failed", "draining", "stopping", "down"]


class ServiceState(Frozen):
    """A service as the supervisor sees it; `created` tells the process from a later one with its number."""

    name: str
    pid: int | None = None
    created: float | None = None
    restarts: int = 0
    leaves_work: bool = False


class State(Frozen):
    """What the supervisor is at, and where it failed, why and what to do."""

    phase: Phase
    pid: int
    reason: str = ""
    mend: str = ""
    services: tuple[ServiceState, ...] = ()


@dataclass
class _Watched:
    service: Service
    process: Process | None = None
    restarts: int = 0
    silent: int = 0
    failures: int = 0
    not_before: float = 0.0

    def state(self) -> ServiceState:
        pid = self.process.pid if self.process else None
        return ServiceState(
            name=self.service.name, pid=pid, created=_created(pid), restarts=self.restarts,
            leaves_work=self.service.leaves_work,
        )  # fmt: skip


class Supervisor:
    """Runs services until it is asked to end.

    Parameters
    ----------
    services : iterable of Service
        In the order of their start.
    state : path
        Where its state is written.
    log : path
        Where its own output goes.
    """

    def __init__(self, services: Iterable[Service], state: Path, log: Path) -> None:
        self._watched = [_Watched(service) for service in services]
        self._state, self._log = state, log
        self._phase: Phase = "starting"
        self._end = threading.Event()
        self._asked = time.monotonic()

    def end(self) -> None:
        """Ask it to end; safe in a signal handler."""
        self._end.set()

    def start(self) -> bool:
        """Start everything; False where it was asked to end before.

        Raises
        ------
        InputError
            Where a service does not become healthy. What was started is ended then.
        """
        self._end_leftovers()
        self._tell("starting")
        for one in self._watched:
            one.process = one.service.start(wanted=lambda: not self._end.is_set())
            self._tell("starting")
            if self._end.is_set():
                return False
            if one.process is None:
                raise InputError(one.service.name, "does not start", f"look at {one.service.log}")
            log.info("%s is up", one.service.name)
        self._tell("up")
        return True

    def watch(self) -> None:
        """Restart what fails, until it is asked to end."""
        while not self._end.wait(LOOK_SECONDS):
            self._look(self._watched, lambda: not self._end.is_set())

    def drain(self, api: PrefectApi, wanted: Callable[[], bool]) -> None:
        """Give out no more work, and wait for what is under way, as long as that is wanted.

        What the running flows need is watched on. Where Prefect does not say for minutes what runs, nothing is waited
        for.
        """
        self._tell("draining")
        serving = [one for one in self._watched if not one.service.leaves_work]  # a new worker would take new work
        paused, answered = False, time.monotonic()
        while wanted() and time.monotonic() - answered < DRAIN_PATIENCE:
            try:
                if not paused:
                    api.pause(True)
                paused = True
                if not api.under_way():
                    return
                answered = time.monotonic()
            except httpx.HTTPError as error:
                log.warning("Prefect does not say what runs: %s", error)
            self._look(serving, wanted)
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        """End everything, the last one first."""
        self._tell("stopping")
        for one in reversed(self._watched):
            if one.process is not None:
                one.service.stop(one.process)
                one.process = None
                log.info("%s has ended", one.service.name)
        self._tell("down")

    def fail(self, error: Exception) -> None:
        """Leave the reason where ``cmseg up`` finds it."""
        if isinstance(error, InputError):
            self._tell("failed", f"{error.subject} {error.reason}", error.mend)
        else:
            self._tell("failed", f"{type(error).__name__}: {error}", "look at supervisor.log beside the other logs")

    def _look(self, watched: Iterable[_Watched], wanted: Callable[[], bool]) -> None:
        if time.monotonic() - self._asked >= HEALTH_SECONDS:
            self._ask(watched)
            self._rotate_logs()
        for one in watched:
            if one.process is None or one.process.poll() is not None:
                self._restart(one, wanted)

    def _ask(self, watched: Iterable[_Watched]) -> None:
        self._asked = time.monotonic()
        for one in watched:
            if one.process is None or one.process.poll() is not None:
                continue
            one.silent = 0 if one.service.healthy() else one.silent + 1
            if one.silent >= PATIENCE:
                log.warning("%s does not answer and is restarted", one.service.name)
                one.service.stop(one.process)

    def _rotate_logs(self) -> None:
        for log_file in (*(one.service.log for one in self._watched), self._log):
            try:
                rotate(log_file)
            except OSError as error:  # a full disk must not end the services
                log.warning("%s cannot be begun anew: %s", log_file, error)

    def _restart(self, one: _Watched, wanted: Callable[[], bool]) -> None:
        """Start a service again: at once the first time, then with growing waits."""
        if one.process is not None:
            log.warning("%s ended with status %s", one.service.name, one.process.poll())
            if not one.service.leaves_work:
                processes.end_group(one.process.pid)
            one.process, one.silent = None, 0
        if time.monotonic() < one.not_before:
            return
        one.restarts += 1
        try:
            one.process = one.service.start(wanted=wanted)
        except Exception:  # whatever it is, the others go on, and this one is tried again
            log.exception("%s", one.service.name)
        one.failures = 0 if one.process else one.failures + 1
        one.not_before = time.monotonic() + min(LONGEST_WAIT, 2.0**one.failures)
        self._tell(self._phase)
        log.info("%s %s", one.service.name, "is up again" if one.process else "does not start yet")

    def _tell(self, phase: Phase, reason: str = "", mend: str = "") -> None:
        self._phase = phase
        services = tuple(one.state() for one in self._watched)
        state = State(phase=phase, pid=os.getpid(), reason=reason, mend=mend, services=services)
        write_private(self._state, state.model_dump_json(indent=2))

    def _end_leftovers(self) -> None:
        """End what a supervisor that was killed left behind: it would hold the ports."""
        former = read_state(self._state)
        for one in former.services if former else ():
            if one.pid and not one.leaves_work and _created(one.pid) == one.created:
                log.warning("%s of a former supervisor is ended", one.name)
                processes.end_group(one.pid)


def read_state(path: Path) -> State | None:
    """What a supervisor wrote down last; None where there is nothing."""
    try:
        return State.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def run(workspace: Path, settings: StackSettings) -> None:
    """Keep the stack of a workspace up until SIGTERM or SIGINT; then let running flows end first.

    A second signal breaks them off; they go on at the next start.
    """
    stack = Stack(workspace)
    with ExitStack() as held:
        held.enter_context(stack.held())
        held.enter_context(object_store.held(stack.folder / "s3"))
        supervisor = Supervisor(stack.services(settings), stack.state, stack.log)
        signals = _Signals(supervisor)
        try:
            if supervisor.start():
                supervisor.watch()
                prefect = client_environment(settings.prefect_port, stack.secrets().prefect)
                supervisor.drain(PrefectApi(prefect), wanted=lambda: signals.count < 2)
        except Exception as error:
            log.exception("the stack fails")
            supervisor.stop()
            supervisor.fail(error)
            raise
        supervisor.stop()


class _Signals:
    """Counts the requests to end."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.count = 0
        self._supervisor = supervisor
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: Any) -> None:
        self.count += 1
        self._supervisor.end()


def _created(pid: int | None) -> float | None:
    try:
        return psutil.Process(pid).create_time() if pid else None
    except psutil.Error:
        return None


def main() -> None:
    """Run for the workspace that the arguments name."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    run(Path(sys.argv[1]), StackSettings())


if __name__ == "__main__":
    main()
