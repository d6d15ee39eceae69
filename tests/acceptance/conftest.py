"""Acceptance tests drive the installed ``cmseg`` command and know nothing of the code behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployments.prefect_server import client_environment, prefect_service
from deployments.processes import free_ports

COMMAND = Path(sys.executable).parent / "cmseg"
THRESHOLD = "foreground: {method: threshold}\n"


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit status, and both streams."""

    status: int
    out: str
    err: str

    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    def complaint(self) -> str:
        """The one line that bad input gets."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        assert lines[0].startswith("cmseg: ")
        return lines[0]


Cmseg = Callable[..., Outcome]


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server, as variables for commands. Each would start one of its own, and take twice as long."""
    folder, (port,) = tmp_path_factory.mktemp("prefect"), free_ports(1)
    database = f"sqlite+aiosqlite:///{folder}/prefect.db"
    service = prefect_service(folder, port, password="door", database=database, log=folder / "prefect.log")
    process = service.start(within=120)
    assert process is not None, (folder / "prefect.log").read_text()
    try:
        yield client_environment(port, "door")
    finally:
        service.stop(process)


@pytest.fixture(scope="session")
def cmseg(alone: Cmseg, prefect: dict[str, str]) -> Cmseg:
    """Run ``cmseg`` with arguments, in a workspace that the tests of a session share, with a Prefect server at hand."""
    return lambda *arguments, **options: alone(*arguments, **{**prefect, **options})


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Cmseg:
    """As `cmseg`, without any service at hand."""
    if not COMMAND.is_file():
        pytest.skip(f"{COMMAND} is absent: install the project first")
    workspace = tmp_path_factory.mktemp("workspace")

    def run(*arguments: object, timeout: float = 280, **variables: str) -> Outcome:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CMSEG_")}
        environment |= {"CMSEG_WORKSPACE": str(workspace), "CMSEG_THREADS": "1", **variables}
        command = [str(COMMAND), *(str(argument) for argument in arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def phantom(cmseg: Cmseg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny simulated acquisition, with its truth."""
    return drawn(cmseg, tmp_path_factory.mktemp("phantoms") / "tiny", edge_nm=60)


def drawn(cmseg: Cmseg, folder: Path, *, edge_nm: float) -> Path:
    """Three simulated cells in `folder`."""
    made = cmseg("phantom", folder, "--cells", 3, "--voxel-size", edge_nm, edge_nm, edge_nm, "--seed", 1)
    assert made.status == 0, made.err
    return folder


@pytest.fixture(scope="session")
def unet(cmseg: Cmseg, phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny U-Net that has learned next to nothing: enough to go through every stage."""
    folder = tmp_path_factory.mktemp("models")
    settings = folder / "tiny.yaml"
    settings.write_text(
        "{width: 4, depth: 3, section_size: 32, epochs: 1, steps_per_epoch: 2, batch_size: 2, precision: float32}\n"
    )
    made = cmseg("train", phantom, "--config", settings, "--out", folder / "tiny.keras", "--seed", 1)
    assert made.status == 0, made.err
    return folder / "tiny.keras"


@pytest.fixture
def threshold(tmp_path: Path) -> Path:
    """Settings that find cells without a network."""
    path = tmp_path / "threshold.yaml"
    path.write_text(THRESHOLD)
    return path


@pytest.fixture(scope="session")
def packaged_models(cmseg: Cmseg) -> None:
    """The starter models that come with the package; the test is skipped where it has none."""
    bad = [
        f["detail"]
        for f in cmseg("doctor", "--json").document()["findings"]
        if f["subject"].startswith("model ") and f["state"] == "bad"
    ]
    if bad:
        pytest.skip(f"a packaged model is absent: {bad[0]}")
