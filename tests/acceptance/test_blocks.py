"""A run killed between two blocks goes on with the missing ones, and the blocks leave no trace in the result."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.conftest import Cmseg
from tests.acceptance.test_survival import killed_once


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_a_killed_run_computes_only_the_missing_blocks(cmseg: Cmseg, phantom: Path, unet: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("foreground: {method: threshold, cell_diameter_px: 80}\n")
    arguments = ("run", phantom, tmp_path / "out", "--config", settings, "--unet", unet)
    place = {"CMSEG_WORKSPACE": str(tmp_path / "workspace"), "CMSEG_BLOCK_EDGE": "64", "CMSEG_THREADS": "2"}
    work = tmp_path / "workspace" / "store" / "work"

    def blocks(stage: str) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in work.glob(f"{stage}/*/parts/*") if path.is_file()}

    killed_once(arguments, place, lambda: len(blocks("basins")) >= 3)
    drawn, found = blocks("landscape"), blocks("basins")
    assert len(drawn) >= 8 > len(blocks("instances"))
    finished = cmseg(*arguments, **place)
    assert finished.status == 0, finished.err
    assert blocks("landscape") == drawn
    assert set(blocks("basins")) == set(drawn)
    assert {name: time for name, time in blocks("basins").items() if name in found} == found

    place |= {"CMSEG_WORKSPACE": str(tmp_path / "other"), "CMSEG_BLOCK_EDGE": "128"}
    undisturbed = cmseg("run", phantom, tmp_path / "whole", "--config", settings, "--unet", unet, **place)
    assert undisturbed.status == 0, undisturbed.err
    assert content(tmp_path / "out") == content(tmp_path / "whole")
