"""The end of the services: what runs may end first, and what it needs is kept up meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest

from deployments import supervisor as module
from deployments.prefect_server import PrefectApi
from deployments.service import Service
from deployments.supervisor import Supervisor, read_state


class Api:
    """Says what runs by a script; the last answer is repeated."""

    def __init__(self, *answers: Callable[[], list[dict[str, Any]]]) -> None:
        self.answers, self.paused = list(answers), False

    def pause(self, paused: bool) -> None:
        self.paused = paused

    def under_way(self) -> list[dict[str, Any]]:
        return (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])()


def away() -> list[dict[str, Any]]:
    raise httpx.ConnectError("Prefect does not answer")


def runs() -> list[dict[str, Any]]:
    return [{"name": "night"}]


def nothing() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """A supervisor with a store and a worker, which are processes that sleep."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)

    def service(name: str, leaves_work: bool = False) -> Service:
        command = (sys.executable, "-c", "import time; time.sleep(600)")
        return Service(name, command, tmp_path, tmp_path / f"{name}.log", lambda: True, leaves_work=leaves_work)

    made = Supervisor([service("store"), service("worker", True)], tmp_path / "state.json", tmp_path / "log")
    assert made.start()
    yield made
    made.stop()


def pids(folder: Path) -> dict[str, int | None]:
    state = read_state(folder / "state.json")
    assert state is not None
    return {one.name: one.pid for one in state.services}


def drain(up: Supervisor, api: Api, wanted: Callable[[], bool] = lambda: True) -> None:
    up.drain(cast(PrefectApi, api), wanted)


def test_runs_may_end_first_and_what_they_need_is_started_again(up: Supervisor, tmp_path: Path) -> None:
    before = pids(tmp_path)

    def killed() -> list[dict[str, Any]]:
        for pid in before.values():
            process = psutil.Process(pid)
            process.kill()
            psutil.wait_procs([process], timeout=10)
        return runs()

    api = Api(away, killed, runs, runs, nothing)
    drain(up, api)
    after = pids(tmp_path)
    assert api.paused
    assert after["store"] not in {None, before["store"]}
    assert after["worker"] == before["worker"], "a new worker would take new work"
    state = read_state(tmp_path / "state.json")
    assert state is not None and state.phase == "draining"


def test_a_second_request_breaks_off(up: Supervisor) -> None:
    asked = iter([True, True, False])
    drain(up, Api(runs), lambda: next(asked))
    assert next(asked, None) is None


def test_a_prefect_that_is_away_is_not_waited_for_endlessly(up: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_PATIENCE", 0.3)
    began = time.monotonic()
    drain(up, Api(away))
    assert time.monotonic() - began >= 0.3
