"""Data sets from the command line: any taxonomy, corrections that come back, and a training on a version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

Cmseg = Any
TWO = {"classes": [{"id": 0, "name": "outside"}, {"id": 1, "name": "mitochondrion"}, {"id": 2, "name": "membrane"}]}
TINY = "{width: 4, depth: 3, section_size: 32, epochs: 1, steps_per_epoch: 2, batch_size: 2, precision: float32}\n"


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """A workspace of the test's own."""
    return {"CMSEG_WORKSPACE": str(tmp_path / "workspace")}


def field(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """A small field of two organelle classes that reach its borders, without a voxel size."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((8, 48, 64), np.uint8)
    labels[:, 10:30, 5:60] = 1
    labels[:, :, 30:34] = 2
    image = (np.array([120, 60, 20])[labels] + rng.normal(0, 8, labels.shape)).clip(0, 255).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "image.tif", image, photometric="minisblack")
    tifffile.imwrite(folder / "labels.tif", labels, photometric="minisblack")
    return folder / "image.tif", folder / "labels.tif"


def test_any_taxonomy_gets_through_to_a_model(cmseg: Cmseg, place: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "taxonomy.json").write_text(json.dumps(TWO))
    (tmp_path / "tiny.yaml").write_text(TINY)
    image, labels = field(tmp_path / "mine")
    made = cmseg("dataset", "create", "two", "--taxonomy", tmp_path / "taxonomy.json", "--json", **place)
    assert made.document()["reference"] == "two@1"
    add = ("dataset", "add", "two", "--image", image, "--labels", labels)
    nowhere = cmseg(*add, **place)
    assert nowhere.status == 2
    assert "--voxel-size" in nowhere.complaint()
    added = cmseg(*add, "--voxel-size", 5, 5, 5, "--json", **place)
    assert added.status == 0, added.err
    document = added.document()
    assert document["added"] == ["mine/image"]
    assert document["samples"][0]["kind"] == "field"
    assert set(document["samples"][0]["voxels"]) == {"outside", "mitochondrion", "membrane"}
    settings = ("--config", tmp_path / "tiny.yaml", "--out", tmp_path / "two.keras", "--seed", 1, "--json")
    trained = cmseg("train", "two", *settings, **place)
    assert trained.status == 0, trained.err
    assert (tmp_path / "two.keras").is_file()


def test_labelled_sections_of_a_stack_are_samples_of_their_own(
    cmseg: Cmseg, place: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "taxonomy.json").write_text(json.dumps(TWO))
    (tmp_path / "tiny.yaml").write_text(TINY)
    image, labels = field(tmp_path / "mine")
    sparse = tifffile.imread(labels)
    sparse[[0, 1, 3, 4, 6]] = 0
    tifffile.imwrite(labels, sparse, photometric="minisblack")
    assert cmseg("dataset", "create", "two", "--taxonomy", tmp_path / "taxonomy.json", **place).status == 0
    add = ("dataset", "add", "two", "--image", image, "--labels", labels, "--voxel-size", 40, 5, 5)
    refused = cmseg(*add, "--kind", "sections", "--stage", 2, **place)
    assert (refused.status, "--stage" in refused.complaint()) == (2, True)
    added = cmseg(*add, "--kind", "sections", "--json", **place)
    assert added.status == 0, added.err
    samples = added.document()["samples"]
    assert [s["name"] for s in samples] == [f"mine/image/{n:05}" for n in (2, 5, 7)]
    assert all(s["shape"] == [1, 48, 64] and s["kind"] == "field" for s in samples)
    assert [s["provenance"]["section"] for s in samples] == [2, 5, 7]
    settings = ("--config", tmp_path / "tiny.yaml", "--out", tmp_path / "two.keras", "--validation", "none", "--json")
    trained = cmseg("train", "two", *settings, **place)
    assert trained.status == 0, trained.err
    assert trained.document()["scores"] == {}
    scored = cmseg(
        "evaluate", tmp_path / "two.keras", "two", "--predictions", tmp_path / "drawn", "--json", **place
    )  # fmt: skip
    assert scored.status == 0, scored.err
    document = scored.document()
    assert document["directions"]["z"] == document["iou"]
    assert set(document["directions"]["x"].values()) == {None}
    drawn = {path.name: tifffile.imread(path) for path in (tmp_path / "drawn").iterdir()}
    assert sorted(drawn) == [f"mine-image-{n:05}.tif" for n in (2, 5, 7)]
    right = sum((drawn[f"mine-image-{n:05}.tif"].reshape(48, 64) == 2)[sparse[n] == 2].sum() for n in (2, 5, 7))
    found = sum((stack == 2).sum() for stack in drawn.values()) + sum((sparse[n] == 2).sum() for n in (2, 5, 7))
    assert document["dice"]["membrane"] == pytest.approx(2 * right / found)
    (tmp_path / "file").touch()
    refused = cmseg("evaluate", tmp_path / "two.keras", "two", "--predictions", tmp_path / "file", **place)
    assert (refused.status, "--predictions" in refused.complaint()) == (2, True)


def test_a_data_set_is_shown_with_a_picture(cmseg: Cmseg, place: dict[str, str], phantom: Path, tmp_path: Path) -> None:
    assert cmseg("dataset", "create", "cells", **place).status == 0
    truth = ("--labels", phantom / "organelles.tif", "--cells", phantom / "cells.tif")
    added = cmseg("dataset", "add", "cells", "--image", phantom / "stack.tif", *truth, **place)
    assert added.status == 0, added.err
    shown = cmseg("dataset", "show", "cells@2", "--picture", tmp_path / "classes.png", "--json", **place)
    document = shown.document()
    stated = json.loads((phantom / "acquisition.json").read_text())["stages"]
    found = {s["name"].rsplit("/", 1)[1]: s["stage"] for s in document["samples"]}
    assert found
    assert found.items() <= stated.items()
    assert document["picture"] == str(tmp_path / "classes.png")
    picture = cv2.imread(str(tmp_path / "classes.png"))
    assert picture is not None
    assert picture.std() > 10
    table = cmseg("dataset", "show", "cells", **place).out
    assert all(name in table for name in ("mitochondrion", "peroxisome", "cells@2"))


def test_a_correction_comes_back_and_keeps_its_origin(
    cmseg: Cmseg, place: dict[str, str], phantom: Path, unet: Path, threshold: Path, tmp_path: Path
) -> None:
    done = cmseg("run", phantom, tmp_path / "out", "--config", threshold, "--unet", unet)
    assert done.status == 0, done.err
    cell = next(folder for folder in sorted((tmp_path / "out" / "cells").iterdir()))
    assert cmseg("dataset", "create", "corrected", **place).status == 0
    labels = tifffile.imread(cell / "organelles.tif")
    labels[tuple(edge // 2 for edge in labels.shape)] = 3
    for version, name in ((2, "first.tif"), (3, "second.tif")):
        tifffile.imwrite(tmp_path / name, labels, photometric="minisblack")
        give = ("--image", cell / "image.tif", "--labels", tmp_path / name, "--stage", 2, "--json")
        added = cmseg("dataset", "add", "corrected", *give, **place)
        assert added.status == 0, added.err
        assert added.document()["version"] == version
        labels[tuple(edge // 2 - 1 for edge in labels.shape)] = 4
    (sample,) = added.document()["samples"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert sample["name"] == f"{manifest['acquisition']['name']}/{cell.name}"
    assert (sample["kind"], sample["stage"], sample["denoised"]) == ("cell", 2, True)
    result = sample["provenance"]["result"]
    assert result["acquisition"]["sha256"] == manifest["acquisition"]["sha256"]
    assert result["models"] == manifest["models"]
    assert sample["provenance"]["replaces"]


def test_another_image_does_not_take_the_place_of_a_sample(cmseg: Cmseg, place: dict[str, str], tmp_path: Path) -> None:
    image, labels = field(tmp_path / "a" / "mine")
    other, _ = field(tmp_path / "b" / "mine", seed=1)
    size = ("--voxel-size", 5, 5, 5)
    assert cmseg("dataset", "create", "cells", **place).status == 0
    assert cmseg("dataset", "add", "cells", "--image", image, "--labels", labels, *size, **place).status == 0
    refused = cmseg("dataset", "add", "cells", "--image", other, "--labels", labels, *size, **place)
    assert refused.status == 2
    assert "--name" in refused.complaint()
    named = ("--image", other, "--labels", labels, "--name", "other", *size)
    assert cmseg("dataset", "add", "cells", *named, **place).status == 0


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        ("ids", "class id 9, unknown"),
        ("shape", "has shape"),
        ("empty", "nothing but background"),
        ("absent", "does not exist"),
    ],
)
def test_bad_labels_get_one_line_and_add_nothing(
    cmseg: Cmseg, place: dict[str, str], tmp_path: Path, breaking: str, words: str
) -> None:
    image, labels = field(tmp_path / "mine")
    bad = tifffile.imread(labels)
    if breaking == "absent":
        labels.unlink()
    else:
        bad = {"ids": np.where(bad == 2, 9, bad), "shape": bad[:, :-1], "empty": bad * 0}[breaking]
        tifffile.imwrite(labels, bad.astype(np.uint8), photometric="minisblack")
    assert cmseg("dataset", "create", "cells", **place).status == 0
    refused = cmseg("dataset", "add", "cells", "--image", image, "--labels", labels, "--voxel-size", 5, 5, 5, **place)
    assert refused.status == 2
    assert words in refused.complaint()
    assert "labels.tif" in refused.complaint()
    assert json.loads(cmseg("dataset", "show", "cells", "--json", **place).out)["version"] == 1


def test_what_is_no_data_set_is_told(cmseg: Cmseg, place: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"classes": [{"id": 1, "name": "a"}]}')
    wrong = cmseg("dataset", "create", "cells", "--taxonomy", tmp_path / "bad.json", **place)
    assert wrong.status == 2
    assert "bad.json" in wrong.complaint()
    for command in (("dataset", "show", "none"), ("train", "none")):
        refused = cmseg(*command, **place)
        assert refused.status == 2
        assert "none" in refused.complaint()
    assert cmseg("dataset", "create", "cells", **place).status == 0
    assert "holds no sample" in cmseg("train", "cells", **place).complaint()
    image, labels = field(tmp_path / "mine")
    assert (
        cmseg("dataset", "add", "cells", "--image", image, "--labels", labels, "--voxel-size", 5, 5, 5, **place).status
        == 0
    )
    assert "cells apart" in cmseg("train", "cells", "--model", "sam", **place).complaint()
    shutil.rmtree(tmp_path / "workspace" / "store" / "datasets" / "cells" / "samples")
    assert "is missing from the store" in cmseg("train", "cells", **place).err
