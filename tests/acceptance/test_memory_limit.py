"""``cmseg run`` in a real control group of Linux, which the kernel holds to its memory.

The test needs to be root, and is skipped elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.acceptance.conftest import COMMAND

HERE = Path("/sys/fs/cgroup")


@pytest.fixture
def limit() -> Iterator[Callable[[float], Path]]:
    """Make the group; called, it sets the limit in GB and tells where its processes are named."""
    old = (HERE / "memory").is_dir()
    group = (HERE / "memory" if old else HERE) / f"cmseg-test-{os.getpid()}"
    held = group / ("memory.limit_in_bytes" if old else "memory.max")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not held.exists():
            pytest.skip(f"the control groups of {HERE} do not limit memory")

        def set_to(gigabytes: float) -> Path:
            held.write_text(str(int(gigabytes * 1e9)))
            return group / "cgroup.procs"

        yield set_to
    finally:
        group.rmdir()


@pytest.mark.slow
def test_what_a_container_has_no_memory_for_is_refused_and_runs_with_more(
    limit: Callable[[float], Path], phantom: Path, unet: Path, threshold: Path, tmp_path: Path
) -> None:
    def run(gigabytes: float) -> CompletedProcess[str]:
        join = f'echo $$ > {limit(gigabytes)} && exec "$@"'
        given = ["run", phantom, tmp_path / "result", "--unet", unet, "--config", threshold, "--json"]
        command = ["sh", "-c", join, "sh", COMMAND, *given]
        environment = {**os.environ, "CMSEG_WORKSPACE": str(tmp_path / "workspace"), "CMSEG_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    refused = run(0.9)
    assert refused.returncode == 2, refused.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.strip()]
    assert "GB of memory" in line and "this machine or container has 0.9 GB" in line
    assert not (tmp_path / "result").exists()
    done = run(2.5)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "published"
    assert (tmp_path / "result" / "manifest.json").exists()
