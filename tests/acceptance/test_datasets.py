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
import zarr

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


@pytest.fixture(scope="module")
def result(
    cmseg: Cmseg, phantom: Path, unet: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """What ``cmseg run`` left of the phantom, and a workspace whose champion is the model that drew it."""
    folder = tmp_path_factory.mktemp("result")
    place = {"CMSEG_WORKSPACE": str(folder / "workspace")}
    (folder / "threshold.yaml").write_text("foreground: {method: threshold}\n")
    done = cmseg("run", phantom, folder / "out", "--config", folder / "threshold.yaml", "--unet", unet)
    assert done.status == 0, done.err
    assert cmseg("models", "import", unet, "--role", "unet", "--name", "mine", **place).status == 0
    first = cmseg("models", "promote", "models:/mine/1", phantom, **place)
    assert first.status == 0, first.err
    return folder / "out", place


def test_a_correction_keeps_its_origin_and_fine_tunes_the_champion(
    cmseg: Cmseg, result: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    out, place = result
    cell = next(folder for folder in sorted((out / "cells").iterdir()))
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
    manifest = json.loads((out / "manifest.json").read_text())
    assert sample["name"] == f"{manifest['acquisition']['name']}/{cell.name}"
    assert (sample["kind"], sample["stage"], sample["denoised"]) == ("cell", 2, True)
    origin = sample["provenance"]["result"]
    assert origin["acquisition"]["sha256"] == manifest["acquisition"]["sha256"]
    assert origin["models"] == manifest["models"]
    assert sample["provenance"]["replaces"]
    # One corrected cell, which need not show every class, is enough to go on from a model.
    (tmp_path / "on.yaml").write_text("{epochs: 1, steps_per_epoch: 1, batch_size: 2, precision: float32}\n")
    give = ("--initial", "models:/mine@champion", "--config", tmp_path / "on.yaml", "--json")
    tuned = cmseg("train", "corrected", *give, **place)
    assert tuned.status == 0, tuned.err
    known = {m["reference"]: m for m in cmseg("models", "list", "--json", **place).document()["models"]}
    assert known[tuned.document()["model"]]["aliases"] == ["challenger"]


def test_a_label_corrected_in_the_volume_comes_back(
    cmseg: Cmseg, result: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """By the image of one cell, whose crop is taken, or for every cell; the label in the volume, or a plain one."""
    out, place = result
    cell = next(folder for folder in sorted((out / "cells").iterdir()))
    volume = shutil.copytree(out / "volume.ome.zarr", tmp_path / "volume.ome.zarr")
    organelles = zarr.open_array(volume / "labels" / "organelles" / "0", mode="r+")
    drawn = np.asarray(organelles[:])
    drawn[drawn == 1] = 2
    organelles[:] = drawn
    shutil.copytree(volume / "labels" / "organelles", tmp_path / "plain.ome.zarr")
    about = zarr.open_group(tmp_path / "plain.ome.zarr", mode="r+")
    plain = dict(about.attrs["ome"])  # a label of other software need not state units: it lies on the image's grid
    plain["multiscales"][0]["axes"] = [{"name": axis, "type": "space"} for axis in "zyx"]
    about.attrs["ome"] = plain
    contents = set()
    for name, labels in (("within", volume / "labels" / "organelles"), ("plain", tmp_path / "plain.ome.zarr")):
        assert cmseg("dataset", "create", name, **place).status == 0
        added = cmseg("dataset", "add", name, "--image", cell / "image.tif", "--labels", labels, "--json", **place)
        assert added.status == 0, added.err
        (sample,) = added.document()["samples"]
        contents.add(sample["content"])
        assert sample["provenance"]["result"]["cell"] == cell.name
    (content,) = contents
    stored = Path(place["CMSEG_WORKSPACE"]) / "store" / "datasets" / "within" / "samples" / content
    kept = tifffile.imread(stored / "labels.tif")
    assert (kept[tifffile.imread(stored / "others.tif") > 0] == 0).all()
    by_cell = tifffile.imread(cell / "organelles.tif")
    ids = np.asarray(zarr.open_array(volume / "labels" / "cells" / "0", mode="r")[:])
    lowest = [max(0, low.min() - 3) for low in np.nonzero(ids == int(cell.name))]  # a margin of 150 nm
    own = ids[tuple(slice(low, low + edge) for low, edge in zip(lowest, kept.shape, strict=True))] == int(cell.name)
    assert np.array_equal(kept[own], np.where(by_cell == 1, 2, by_cell)[own])
    assert (kept[own] == 2).any()
    give = ("--image", out / "volume.ome.zarr", "--labels", volume / "labels" / "organelles")
    ids = ("--cells", out / "volume.ome.zarr" / "labels" / "cells")
    assert cmseg("dataset", "create", "whole", **place).status == 0
    added = cmseg("dataset", "add", "whole", *give, *ids, "--json", **place)
    assert added.status == 0, added.err
    manifest = json.loads((out / "manifest.json").read_text())
    found = {s["name"]: s["provenance"]["result"] for s in added.document()["samples"]}
    assert f"{manifest['acquisition']['name']}/{cell.name}" in found
    assert all(origin["models"] == manifest["models"] for origin in found.values())
    organelles[0, 0, 0] = 99
    refused = cmseg("dataset", "add", "whole", *give, **place)
    assert refused.status == 2
    assert "99" in refused.complaint()


def test_an_image_without_units_takes_the_stated_voxel_size(
    cmseg: Cmseg, place: dict[str, str], tmp_path: Path
) -> None:
    image, labels = field(tmp_path / "mine")
    scale = [{"type": "scale", "scale": [1, 1, 1]}]
    axes = [{"name": axis, "type": "space"} for axis in "zyx"]
    for path in (image, labels):
        group = zarr.create_group(path.with_suffix(".zarr"), zarr_format=2)
        group["0"] = tifffile.imread(path).astype(np.int16 if path is labels else np.uint8)
        datasets = [{"path": "0", "coordinateTransformations": scale}]
        group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    assert cmseg("dataset", "create", "cells", **place).status == 0
    add = ("dataset", "add", "cells", "--image", image.with_suffix(".zarr"), "--labels", labels.with_suffix(".zarr"))
    nowhere = cmseg(*add, **place)
    assert (nowhere.status, "--voxel-size" in nowhere.complaint()) == (2, True)
    added = cmseg(*add, "--voxel-size", 5, 5, 5, "--json", **place)
    assert added.status == 0, added.err
    (sample,) = added.document()["samples"]
    assert sample["voxel_size"] == {"z": 5, "y": 5, "x": 5}
    zarr.open_array(labels.with_suffix(".zarr") / "0", mode="r+")[0, 0, 0] = -1
    refused = cmseg(*add, "--voxel-size", 5, 5, 5, **place)
    assert (refused.status, "negative" in refused.complaint()) == (2, True)


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
