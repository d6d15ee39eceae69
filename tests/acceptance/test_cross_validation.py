"""Six cases, each scored with cells that it never saw, and the paper's tables over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

Cmseg = Any
TINY = "{width: 2, depth: 2, section_size: 16, epochs: 1, steps_per_epoch: 1, batch_size: 2, precision: float32}\n"


@pytest.fixture(scope="module")
def place(cmseg: Cmseg, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A workspace with a data set ``six`` of six cells."""
    folder = tmp_path_factory.mktemp("six")
    place = {"CMSEG_WORKSPACE": str(folder / "workspace")}
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "two.json").write_text('{"classes": [{"id": 0, "name": "outside"}, {"id": 1, "name": "body"}]}')
    assert cmseg("dataset", "create", "six", "--taxonomy", folder / "two.json", **place).status == 0
    for number in range(6):
        labels = np.zeros((12, 14, 13), np.uint8)
        labels[3:9, 3:11, 3 + number % 3 : 10] = 1
        for kind, volume in (("labels", labels), ("image", 200 - 90 * labels)):
            tifffile.imwrite(folder / f"{kind}-{number}.tif", volume, photometric="minisblack")
        give = ("--image", folder / f"image-{number}.tif", "--labels", folder / f"labels-{number}.tif")
        size = ("--voxel-size", 20, 20, 20)
        assert cmseg("dataset", "add", "six", *give, *size, **place).status == 0
    return place


def test_every_cell_is_scored_by_a_model_that_never_saw_it(cmseg: Cmseg, place: dict[str, str]) -> None:
    settings = Path(place["CMSEG_WORKSPACE"]).parent / "tiny.yaml"
    done = cmseg("train", "six", "--config", settings, "--all-cases", "--seed", 1, "--json", **place)
    assert done.status == 0, done.err
    document = done.document()
    assert [case["case"] for case in document["cases"]] == [1, 2, 3, 4, 5, 6]
    for case in document["cases"]:
        assert case["sections"] == {"total": [5, 5 * 3 * 16, 16]}
    assert sorted(cell["name"][-1] for cell in document["cells"]) == list("012345")
    known = cmseg("models", "list", "--json", **place).document()["models"]
    assert {alias for model in known for alias in model["aliases"]} >= {f"case-{k}" for k in range(1, 7)}
    for case in document["cases"][:2]:
        alone = cmseg("evaluate", case["model"], "six", "--case", case["case"], "--json", **place).document()
        (cell,) = alone["cells"]
        assert cell in document["cells"]


def test_wrong_cases_get_one_line(cmseg: Cmseg, place: dict[str, str], unet: Path) -> None:
    beyond = cmseg("train", "six", "--case", 7, **place)
    assert (beyond.status, "--case: 7" in beyond.complaint()) == (2, True)
    for wrong in (("--model", "sam"), ("--validation", "six"), ("--case", 1)):
        refused = cmseg("train", "six", "--all-cases", *wrong, **place)
        assert refused.status == 2
        assert "--all-cases" in refused.complaint()
