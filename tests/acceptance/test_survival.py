"""A training that is killed goes on when the same command is given again, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from tests.acceptance.conftest import COMMAND

Cmseg = Any
SMALL = """
{width: 8, depth: 2, section_size: 32, epochs: 3, steps_per_epoch: 40, batch_size: 2, validation_batches: 1}
"""
TWO = '{"classes": [{"id": 0, "name": "outside"}, {"id": 1, "name": "body"}]}'


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with settings of a small training."""
    path = tmp_path_factory.mktemp("settings") / "small.yaml"
    path.write_text(SMALL)
    return path


def killed_once(arguments: tuple[object, ...], place: dict[str, str], ready: Callable[[], bool]) -> str:
    """Start a command and kill it in the middle of what it does once `ready` holds; gives what it told until then."""
    environment = {**os.environ, **place, "CMSEG_THREADS": "2"}
    command = [str(COMMAND), *(str(argument) for argument in arguments)]
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=told) as process,
    ):
        try:
            while not ready():
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        told.seek(0)
        text = told.read()
    assert process.returncode == -9
    return text


def weights(model: Path) -> dict[str, np.ndarray]:
    """Every array of a model file by its name."""
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(model) as archive, h5py.File(BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    alone: Cmseg, phantom: Path, settings: Path, tmp_path: Path
) -> None:
    place = {"CMSEG_WORKSPACE": str(tmp_path / "workspace")}
    trainings = tmp_path / "workspace" / "trainings"

    def command(out: str) -> tuple[object, ...]:
        return ("train", phantom, "--config", settings, "--seed", 3, "--out", tmp_path / out, "--json")

    killed_once(command("resumed.keras"), place, lambda: any(trainings.glob("*/checkpoint.npz")))
    assert not (tmp_path / "resumed.keras").exists()
    (run,) = trainings.glob("*/run.json")
    run_id = json.loads(run.read_text())["run_id"]
    told = killed_once(command("resumed.keras"), place, lambda: any(trainings.glob("*/registered.json")))
    assert "tiny: taking up the training at epoch 2, step 1" in told
    assert "epoch 1 of 3" not in told
    resumed = alone(*command("resumed.keras"), timeout=600, **place)
    assert resumed.status == 0, resumed.err
    assert "tiny: taking up the training at its end" in resumed.err
    assert resumed.document()["run_id"] == run_id
    assert resumed.document()["model"] == "models:/cmseg-unet/1"
    assert list(trainings.iterdir()) == []
    whole = alone(*command("whole.keras"), timeout=600, **place)
    assert whole.status == 0, whole.err
    assert "epoch 1 of 3" in whole.err
    assert whole.document()["scores"] == resumed.document()["scores"]
    a, b = weights(tmp_path / "whole.keras"), weights(tmp_path / "resumed.keras")
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_cross_validation_does_not_train_its_finished_cases_again(
    alone: Cmseg, settings: Path, tmp_path: Path
) -> None:
    place = {"CMSEG_WORKSPACE": str(tmp_path / "workspace")}
    trainings = tmp_path / "workspace" / "trainings"
    labels = np.zeros((12, 14, 84), np.uint8)
    cells = labels.copy()
    for number in range(6):
        cells[3:9, 3:11, 14 * number + 3 : 14 * number + 11 + number % 3] = number + 1
    labels[cells > 0] = 1
    for name, volume in (("labels", labels), ("cells", cells), ("image", 200 - 90 * labels)):
        tifffile.imwrite(tmp_path / f"{name}.tif", volume, photometric="minisblack")
    (tmp_path / "two.json").write_text(TWO)
    assert alone("dataset", "create", "six", "--taxonomy", tmp_path / "two.json", **place).status == 0
    give = [word for name in ("image", "labels", "cells") for word in (f"--{name}", tmp_path / f"{name}.tif")]
    added = alone("dataset", "add", "six", *give, "--voxel-size", 90, 90, 90, **place)
    assert added.status == 0, added.err
    command = ("train", "six", "--config", settings, "--all-cases", "--json")
    killed_once(command, place, lambda: len(list(trainings.glob("*/trained.json"))) == 2)
    done = [json.loads(path.read_text()) for path in trainings.glob("*/trained.json")]
    resumed = alone(*command, timeout=900, **place)
    assert resumed.status == 0, resumed.err
    for case in done:
        assert f"six: trained already, as {case['model']}" in resumed.err
    cases = resumed.document()["cases"]
    assert {case["run_id"] for case in done} == {case["run_id"] for case in cases[:2]}
    assert len({case["model"] for case in cases}) == 6
    assert list(trainings.iterdir()) == []
