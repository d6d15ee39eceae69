"""Blocks are as large as the memory allows, and what does not fit is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.machine import machine_limit_gb
from cmseg_core.schema import VoxelSize
from tasks import memory
from tasks.memory import plan_blocks
from tasks.request import AcquisitionRequest

LARGE = (512, 1024, 1024)
WORKING = VoxelSize(z=36.46, y=36.46, x=36.46)


def plan(memory: float, shape: tuple[int, int, int] = LARGE, **fields: Any) -> int:
    request = AcquisitionRequest(
        name="large",
        source="large.tif",
        store="store",
        unet="packaged",
        tracking_uri="",
        workspace=Path(),
        max_memory_gb=memory,
        **fields,
    )
    return plan_blocks(request, shape, np.dtype(np.uint8), WORKING)


def test_blocks_shrink_with_the_memory() -> None:
    assert [plan(memory) for memory in (8, 4, 2.5)] == [256, 256, 128]
    assert plan(2.5, (100, 100, 100)) == 256


def test_a_size_that_is_asked_for_is_taken_if_it_fits() -> None:
    assert plan(8, block_edge=64) == 64
    with pytest.raises(InputError, match=r"large\.tif: needs about 8\.\d GB of memory, the limit is 4 GB"):
        plan(4, block_edge=448)


def test_what_does_not_fit_in_any_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="--max-memory"):
        plan(1.6)


def test_a_container_with_less_memory_than_the_limit_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_limit_gb", lambda: 2.5)
    assert plan(8) == 128
    monkeypatch.setattr(memory, "machine_limit_gb", lambda: 1.6)
    with pytest.raises(InputError, match=r"this machine or container has 1\.6 GB; give it more"):
        plan(8)


@pytest.mark.parametrize(
    ("cgroup", "files", "limit"),
    [
        ("0::/lab/worker\n", {"lab/worker/memory.max": "max\n", "lab/memory.max": "900000000\n"}, 0.9),
        ("0::/\n", {"memory.max": "700000000\n"}, 0.7),
        ("4:memory:/lab\n0::/\n", {"memory/lab/memory.limit_in_bytes": "500000000\n"}, 0.5),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("3:cpuset:/\n", {"memory.max": "700000000\n"}, None),
    ],
)
def test_the_limit_of_a_control_group_is_known(
    tmp_path: Path, cgroup: str, files: dict[str, str], limit: float | None
) -> None:
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": t for name, t in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine_limit_gb(tmp_path) == (limit or machine_limit_gb(tmp_path / "nowhere"))
