"""What cannot be learnt from, or scored with: exit status 2, one line that names it and the mend, nothing recorded."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

Cmseg = Any
THREE = {"classes": [{"id": 0, "name": "outside"}, {"id": 1, "name": "body"}, {"id": 2, "name": "spot"}]}


class Explosive:
    """A pickle that leaves a mark where it is executed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def cell(folder: Path, number: int, *, spot: bool = True) -> tuple[Path, Path]:
    """A small cell with a spot in it."""
    labels = np.zeros((12, 14, 13), np.uint8)
    labels[3:9, 3:11, 3 + number : 10] = 1
    if spot:
        labels[5:7, 6:8, 7:9] = 2
    files = folder / f"image-{number}-{spot}.tif", folder / f"labels-{number}-{spot}.tif"
    for path, volume in zip(files, (200 - 50 * labels, labels), strict=True):
        tifffile.imwrite(path, volume, photometric="minisblack")
    return files


def added(image: Path, labels: Path) -> tuple[object, ...]:
    return "--image", image, "--labels", labels, "--voxel-size", 20, 20, 20


@pytest.fixture(scope="module")
def place(cmseg: Cmseg, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A workspace with the data sets ``one`` (a cell), ``few`` (two, each of a stage) and ``spotless`` (two)."""
    folder = tmp_path_factory.mktemp("learning")
    place = {"CMSEG_WORKSPACE": str(folder / "workspace")}
    (folder / "three.json").write_text(json.dumps(THREE))
    for name, numbers, spot in (("one", (0,), True), ("few", (0, 1), True), ("spotless", (0, 1), False)):
        assert cmseg("dataset", "create", name, "--taxonomy", folder / "three.json", **place).status == 0
        for number in numbers:
            stage = ("--stage", number + 1) if name == "few" else ()
            give = added(*cell(folder, number, spot=spot))
            assert cmseg("dataset", "add", name, *give, *stage, **place).status == 0
    return place


@pytest.fixture(scope="module")
def broken(unet: Path, phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that are not what they should be."""
    folder = tmp_path_factory.mktemp("broken")
    image, labels = cell(folder, 0)
    volume = tifffile.imread(labels)
    tifffile.imwrite(folder / "ids.tif", np.where(volume == 2, 9, volume).astype(np.uint8), photometric="minisblack")
    tifffile.imwrite(folder / "shape.tif", volume[:, :-1], photometric="minisblack")
    image.rename(folder / "image.tif")
    organelles = tifffile.imread(phantom / "organelles.tif")
    for name, changed in (("ids", np.where(organelles == 5, 9, organelles)), ("shape", organelles[:-1])):
        shutil.copytree(phantom, folder / f"phantom-{name}")
        path = folder / f"phantom-{name}" / "organelles.tif"
        tifffile.imwrite(path, changed.astype(np.uint8), photometric="minisblack")
    (folder / "cut.keras").write_bytes(unet.read_bytes()[:5000])
    for name in ("pickle.keras", "pickle.pt"):
        (folder / name).write_bytes(pickle.dumps(Explosive(folder / "executed")))
    with zipfile.ZipFile(unet) as whole, zipfile.ZipFile(folder / "weights.keras", "w") as damaged:
        for name in whole.namelist():
            damaged.writestr(name, b"no weights" if name.endswith(".h5") else whole.read(name))
    return folder


Case = Callable[[Path, Path, Path], tuple[list[object], list[str]]]
CASES: dict[str, Case] = {
    "add: ids outside the taxonomy": lambda b, u, p: (
        ["dataset", "add", "few", *added(b / "image.tif", b / "ids.tif")], ["ids.tif", "class id 9", "2 spot"]
    ),
    "add: labels of another shape": lambda b, u, p: (
        ["dataset", "add", "few", *added(b / "image.tif", b / "shape.tif")], ["shape.tif", "has shape"]
    ),
    "train: ids outside the taxonomy": lambda b, u, p: (
        ["train", b / "phantom-ids"], ["organelles.tif", "class id 9", "4 peroxisome"]
    ),
    "train: labels of another shape": lambda b, u, p: (["train", b / "phantom-shape"], ["organelles.tif", "has shape"]),
    "train: a class that no label shows": lambda b, u, p: (["train", "spotless"], ["spotless@3", "no spot"]),
    "train: one cell": lambda b, u, p: (["train", "one"], ["one@2", "one cell", "--initial"]),
    "cases: one cell": lambda b, u, p: (["train", "one", "--all-cases"], ["1 cell;", "6 cells"]),
    "cases: too few of a stage": lambda b, u, p: (["train", "few", "--all-cases"], ["1 cell of stage 1", "add some"]),
    "case: too few of a stage": lambda b, u, p: (["train", "few", "--case", 2], ["1 cell of stage 1", "add some"]),
    "train: validation of other classes": lambda b, u, p: (
        ["train", "few", "--validation", p], ["plastid", "outside, body, spot"]
    ),
    "initial: other classes": lambda b, u, p: (
        ["train", "few", "--initial", u], ["tiny.keras", "plastid", "outside, body, spot"]
    ),
    "initial: cut off": lambda b, u, p: (["train", p, "--initial", b / "cut.keras"], ["cut.keras", "damaged"]),
    "initial: damaged weights": lambda b, u, p: (
        ["train", p, "--initial", b / "weights.keras"], ["weights.keras", "cannot be read"]
    ),
    "initial: a pickle": lambda b, u, p: (["train", p, "--initial", b / "pickle.keras"], ["pickle.keras", "give a"]),
    "evaluate: other classes": lambda b, u, p: (["evaluate", u, "few"], ["tiny.keras", "plastid", "spot"]),
    "evaluate: ids outside the taxonomy": lambda b, u, p: (
        ["evaluate", u, b / "phantom-ids"], ["organelles.tif", "class id 9"]
    ),
    "evaluate: damaged weights": lambda b, u, p: (
        ["evaluate", b / "weights.keras", p], ["weights.keras", "cannot be read"]
    ),
    "import: a pickle for cells": lambda b, u, p: (
        ["models", "import", b / "pickle.pt", "--role", "sam"], ["pickle.pt", "checkpoint"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_gets_one_line_and_leaves_no_trace(
    cmseg: Cmseg, place: dict[str, str], broken: Path, unet: Path, phantom: Path, case: str
) -> None:
    arguments, words = CASES[case](broken, unet, phantom)
    refused = cmseg(*arguments, **place)
    assert refused.status == 2, refused.err
    line = refused.complaint()
    assert all(word in line for word in words), line
    assert refused.out == ""
    workspace = Path(place["CMSEG_WORKSPACE"])
    assert not (workspace / "mlflow.db").exists()  # no run was begun
    assert len(list((workspace / "store" / "datasets" / "few" / "versions").iterdir())) == 3
    assert not (broken / "executed").exists()
