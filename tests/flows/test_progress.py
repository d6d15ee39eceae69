"""How far a run is, as Prefect shows it; a server that does not take it holds nothing up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def told(monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> list[tuple[float, str]]:
    from flows import progress

    calls: list[tuple[float, str]] = []

    def update(_artifact: object, share: float, state: str) -> None:
        calls.append((share, state))
        if fails:
            raise ConnectionError("Prefect does not answer")

    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_args, **_options: "an artifact")
    monkeypatch.setattr(progress, "update_progress_artifact", update)
    return calls


def test_small_steps_are_not_told_but_the_last_is(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.progress import Progress

    calls = told(monkeypatch)
    progress = Progress("a run")
    tell = progress.between(0.5, 0.9, "cells labelled")
    for done in range(1, 101):
        tell(done, 100)
    progress.reach(1, "published")
    assert len(calls) == 5
    assert calls[0] == (50.4, "1 of 100 cells labelled") and calls[-1] == (100, "published")


def test_a_server_that_does_not_answer_holds_nothing_up(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import progress

    calls = told(monkeypatch, fails=True)
    progress.Progress("a run").reach(1, "published")
    assert len(calls) == 1

    def refused(*_args: Any, **_options: Any) -> None:
        raise ConnectionError("Prefect does not answer")

    monkeypatch.setattr(progress, "create_progress_artifact", refused)
    progress.Progress("a run").reach(1, "published")
    assert len(calls) == 1
