"""The account under which PostgreSQL runs where root starts it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cmseg_core.errors import InputError
from deployments.postgres import postgres_service


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Make the service ready as root of a machine that lacks the account, with the `PATH` that cron gives."""

    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return postgres_service(tmp_path / "postgres", 5432, "secret", tmp_path / "postgres.log").prepare


@pytest.mark.skipif(not Path("/usr/sbin/useradd").exists(), reason="this system has no useradd in /usr/sbin")
def test_what_useradd_says_is_told(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert Path(command[0]).name == "useradd" and Path(command[0]).is_file()
        return subprocess.CompletedProcess(command, 1, "", "useradd: cannot lock /etc/passwd\n")

    monkeypatch.setattr(subprocess, "run", locked)
    with pytest.raises(InputError, match=r"cannot lock /etc/passwd\); make it with"):
        prepare()


def test_a_system_without_useradd_is_told(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(InputError, match="there is no useradd"):
        prepare()
