"""Two workers share a night of good and bad acquisitions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.acceptance.conftest import COMMAND, Cmseg

GOOD = [f"good-{n}" for n in range(7)]


@pytest.mark.timeout(600)
def test_each_acquisition_is_processed_once(cmseg: Cmseg, prefect: dict[str, str], unet: Path, tmp_path: Path) -> None:
    place = {"CMSEG_WORKSPACE": str(tmp_path / "workspace"), "CMSEG_FOREGROUND__METHOD": "threshold",
             "CMSEG_UNET": str(unet), "CMSEG_STAGE_MODEL": "rule", "CMSEG_THREADS": "1"}  # fmt: skip
    incoming = tmp_path / "workspace" / "store" / "incoming"
    for seed in (0, 1):
        made = cmseg("phantom", tmp_path / str(seed), "--cells", 2, "--voxel-size", 70, 70, 70, "--seed", seed)
        assert made.status == 0, made.err
    for number, name in enumerate([*GOOD, "altered", "absent"]):
        assert cmseg("submit", tmp_path / str(number % 2), "--name", name, **place).status == 0
    blank = tmp_path / "blank.tif"
    tifffile.imwrite(blank, np.full((20, 40, 40), 7, np.uint8), photometric="minisblack")
    assert cmseg("submit", blank, "--name", "blank", "--voxel-size", 50, 50, 50, **place).status == 0
    (altered,) = (incoming / "altered").glob("data-*/stack.tif")
    content = bytearray(altered.read_bytes())
    content[-1] ^= 1
    altered.write_bytes(content)
    (absent,) = (incoming / "absent").glob("data-*/stack.tif")
    absent.unlink()

    environment = {name: value for name, value in os.environ.items() if not name.startswith("CMSEG_")} | prefect | place
    workers = [
        subprocess.Popen(
            [COMMAND, "nightly", "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    ended = [(worker.communicate(timeout=560), worker.returncode) for worker in workers]

    done = [one for (out, _), _ in ended for one in json.loads(out)["acquisitions"]]
    assert sorted(one["name"] for one in done) == sorted([*GOOD, "altered", "absent", "blank"])
    assert {status for _, status in ended} <= {0, 3}, [err for (_, err), _ in ended]
    assert {one["name"] for one in done if one["state"] == "published"} == set(GOOD)
    listed = {one["name"]: one for one in cmseg("status", "--json", **place).document()["acquisitions"]}
    assert {name: listed[name]["state"] for name in GOOD} == dict.fromkeys(GOOD, "published")
    for name, words in (("altered", "differs from what was submitted"), ("absent", "stack.tif"), ("blank", "is blank")):
        assert listed[name]["state"] == "quarantined"
        assert words in listed[name]["reason"]
    assert len({listed[name]["reason"] for name in ("altered", "absent", "blank")}) == 3
    assert not list((tmp_path / "workspace" / "store" / "work" / "claims").rglob("*.json"))
