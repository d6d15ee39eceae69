"""A night tells where a result is unlike those before it, or unlike what its model learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cmseg_core.evaluation import drift
from cmseg_core.schema import PipelineConfig, VoxelSize, Workspace
from cmseg_core.storage.store import Store
from cmseg_core.tracking.registry import resolve_model
from flows.drift import drift_of
from flows.submit import submit


def night(workspace: Workspace, config: PipelineConfig) -> None:
    from flows.nightly import nightly

    nightly(config=config, workspace=workspace)


@pytest.mark.parametrize("store", ["folder", "s3"], indirect=True)
def test_an_acquisition_of_another_grey_is_told(
    store: Store,
    local: Workspace,
    tiny: Path,
    tiny_unet: Path,
    config: PipelineConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows import morning

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(morning, "emit_event", lambda event, **rest: told.append({"event": event, **rest}))
    monkeypatch.setattr(drift, "FEWEST", 2)
    stack = tifffile.imread(tiny / "stack.tif")
    size = VoxelSize(z=60, y=60, x=60)

    def taken(name: str, volume: np.ndarray) -> None:
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, volume, photometric="minisblack")
        submit(str(path), name, store, voxel_size=size)
        night(local, config)

    for shift in range(3):
        taken(f"usual-{shift}", np.clip(stack.astype(int) + shift, 0, 255).astype(np.uint8))
    assert told == []
    taken("dark", (stack * 0.5).astype(np.uint8))
    (event,) = told
    assert event["event"] == "cmseg.acquisition.drifted" and event["resource"]["prefect.resource.name"] == "dark"
    reason = event["payload"]["reason"]
    assert "grey of a cell is" in reason and "in 3 acquisitions before" in reason
    assert len(store.list("work/figures")) == 4
    taken("later", stack)
    unet = resolve_model(str(tiny_unet), "unet", "", tmp_path)
    again = list(drift_of(store, ["dark"], unet))
    assert again and {drift.usual.count for _, drift in again} == {3}, "what came later is not compared with"
