"""What a service of the stack is: how it is started, when it is healthy, and how it is ended."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from deployments import processes

START_SECONDS = 180.0
"""A service that is not healthy by then has failed to start."""


def nothing() -> None:
    """Where a service needs nothing before or after its start."""


@dataclass(frozen=True)
class Service:
    """One program that the stack consists of.

    Attributes
    ----------
    name : str
    command : tuple of str or path
    folder : path
        Working folder, with all that it keeps.
    log : path
    healthy : callable
        Whether it does its work now; answers within seconds, and raises nothing.
    environment : mapping
        Variables added to those of this process.
    prepare : callable
        Called before each start.
    ready : callable
        Called after each start, once it is healthy; safe to repeat.
    account : str, optional
        User of the machine under whom it runs.
    farewell : signal
        Asks it to end.
    patience : float
        Seconds that it gets to end.
    leaves_work : bool
        What it started goes on where it dies, and is left alone.
    """

    name: str
    command: tuple[str | Path, ...]
    folder: Path
    log: Path
    healthy: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    prepare: Callable[[], None] = nothing
    ready: Callable[[], None] = nothing
    account: str | None = None
    farewell: signal.Signals = signal.SIGTERM
    patience: float = 20.0
    leaves_work: bool = False

    def start(self, *, within: float = START_SECONDS, wanted: Callable[[], bool] = lambda: True) -> Process | None:
        """Start it and wait until it is healthy; None where it ended, took too long, or is no longer wanted."""
        self.prepare()
        running = processes.start(
            self.command,
            folder=self.folder,
            log=self.log,
            environment=self.environment,
            account=self.account,
            farewell=self.farewell,
        )
        deadline = time.monotonic() + within
        try:
            while running.poll() is None and time.monotonic() < deadline and wanted():
                if self.healthy():
                    self.ready()
                    return running
                time.sleep(0.1)
        except BaseException:
            self.stop(running)
            raise
        self.stop(running)
        return None

    def stop(self, process: Process) -> None:
        """End it."""
        processes.stop(process, patience=self.patience, farewell=self.farewell)


Process = subprocess.Popen[bytes]


def answer(url: str, *, auth: tuple[str, str] | None = None, timeout: float = 5.0) -> int:
    """Status of what a server on this machine answers, past any proxy; 0 where nothing does."""
    try:
        return httpx.get(url, auth=auth, timeout=timeout, trust_env=False).status_code
    except httpx.HTTPError:
        return 0
