"""Blocks are as large as the memory allows, and what does not fit is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize
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
