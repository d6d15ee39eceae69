"""The classifier of the cell-cycle stage: trained, registered, scored and used by the same commands as the networks."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

Cmseg = Callable[..., Any]


@pytest.fixture(scope="module")
def fields(cmseg: Cmseg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cells of all stages, in one acquisition."""
    folder = tmp_path_factory.mktemp("staged") / "fields"
    made = cmseg("phantom", folder / "one", "--cells", 6, "--voxel-size", 60, 60, 60, "--seed", 41)
    assert made.status == 0, made.err
    return folder


@pytest.fixture(scope="module")
def trained(cmseg: Cmseg, fields: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A classifier's file, and what its training printed."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "settings.yaml").write_text("{penalty: 0.01}\n")
    out = folder / "stage.json"
    options = ("--config", folder / "settings.yaml", "--validation", fields, "--out", out, "--json")
    made = cmseg("train", fields, "--model", "stage", *options)
    assert made.status == 0, made.err
    return out, made.document()


def test_train_registers_a_challenger_and_shows_its_confusion_matrix(
    cmseg: Cmseg, fields: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    path, document = trained
    assert document["model"].startswith("models:/cmseg-stage/")
    assert document["run_id"]
    assert 0 <= document["scores"]["accuracy"] <= 1
    assert json.loads(path.read_text())["metadata"]["training"] == {"penalty": 0.01}
    known = cmseg("models", "list", "--json").document()["models"]
    (challenger,) = (m for m in known if m["role"] == "stage" and "challenger" in m["aliases"])
    scored = cmseg("evaluate", "models:/cmseg-stage@challenger", fields, "--json")
    assert scored.document()["model"]["sha256"] == challenger["sha256"]
    assert scored.document()["accuracy"] == document["scores"]["accuracy"]


def test_evaluate_shows_the_rule_beside_it(cmseg: Cmseg, fields: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    done = cmseg("evaluate", trained[0], fields, "--json")
    assert done.status == 0, done.err
    scores = done.document()
    assert scores["labels"] == "truth"
    assert set(scores["confusion"]) == set(scores["recall"]) == {"1", "2", "3", "4", "5"}
    assert sum(sum(row.values()) for row in scores["confusion"].values()) == len(scores["cells"]) >= 5
    assert {"accuracy", "interval", "confusion", "calibration_error"} <= set(scores["rule"])
    text = cmseg("evaluate", trained[0], fields).out
    assert all(word in text for word in ("true stage", "recall", "classifier: accuracy", "rule: accuracy"))


def test_evaluate_through_the_labels_of_a_unet(
    cmseg: Cmseg, fields: Path, unet: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    done = cmseg("evaluate", trained[0], fields, "--unet", unet, "--json")
    assert done.status == 0, done.err
    assert done.document()["labels"]["unet"] == str(unet)


def test_the_packaged_classifier_is_found_by_its_role(cmseg: Cmseg, fields: Path) -> None:
    done = cmseg("evaluate", "packaged", fields, "--role", "stage", "--json")
    assert done.status == 0, done.err
    assert done.document()["accuracy"] >= 0.8


def test_a_run_uses_it_and_says_so(
    cmseg: Cmseg, phantom: Path, unet: Path, threshold: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, document = trained
    command = ("run", phantom, tmp_path / "out", "--config", threshold, "--unet", unet, "--stage-model")
    done = cmseg(*command, document["model"])
    assert done.status == 0, done.err
    used = json.loads((tmp_path / "out" / "manifest.json").read_text())["models"]["stage"]
    assert used["reference"] == document["model"]
    assert cmseg(*command, path).status == 0  # the same content: the same run
    with (tmp_path / "out" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["stage"] in ("", "1", "2", "3", "4", "5") and row["stage_confidence"] for row in rows)


def test_a_file_that_is_no_classifier_is_refused(
    cmseg: Cmseg, phantom: Path, unet: Path, threshold: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(pickle.dumps({"weights": [1]}))
    for arguments in (
        ("evaluate", bad, phantom),
        ("models", "import", bad, "--role", "stage"),
        ("run", phantom, tmp_path / "out", "--config", threshold, "--unet", unet, "--stage-model", bad),
    ):
        refused = cmseg(*arguments)
        assert refused.status == 2, refused.err
        assert "bad.json" in refused.err
        assert "Traceback" not in refused.err
    assert not (tmp_path / "out").exists()


def test_cells_that_tell_nothing_about_stages_are_refused(cmseg: Cmseg, phantom: Path, tmp_path: Path) -> None:
    place = {"CMSEG_WORKSPACE": str(tmp_path / "workspace")}
    organelles, image = (tifffile.imread(phantom / f"{name}.tif") for name in ("organelles", "stack"))
    cells = tifffile.imread(phantom / "cells.tif")
    for name, taxonomy in (("none", None), ("single", None), ("other", ["outside", "nucleus"])):
        options: tuple[object, ...] = ()
        if taxonomy is not None:
            classes = [{"id": i, "name": c} for i, c in enumerate(taxonomy)]
            (tmp_path / "taxonomy.json").write_text(json.dumps({"classes": classes}))
            options = ("--taxonomy", tmp_path / "taxonomy.json")
        assert cmseg("dataset", "create", name, *options, **place).status == 0
        labels = np.where(cells == 1, organelles, 0).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"{name}.tif", np.minimum(labels, len(taxonomy) - 1) if taxonomy else labels)
        tifffile.imwrite(tmp_path / "image.tif", image)
        give = ["--image", tmp_path / "image.tif", "--labels", tmp_path / f"{name}.tif", "--voxel-size", 60, 60, 60]
        stage = [] if name == "none" else ["--stage", 2]
        added = cmseg("dataset", "add", name, *give, "--kind", "cell", *stage, **place)
        assert added.status == 0, added.err
    out = tmp_path / "made.json"
    for name, reason in (("none", "states no stage"), ("single", "stage 2 alone"), ("other", "has no plastid")):
        refused = cmseg("train", name, "--model", "stage", "--out", out, **place)
        assert refused.status == 2, refused.err
        assert reason in refused.err
        assert "Traceback" not in refused.err
    assert not out.exists()
    for name, reason in (("none", "states no stage"), ("other", "has no plastid")):
        refused = cmseg("evaluate", "packaged", name, "--role", "stage", **place)
        assert refused.status == 2, refused.err
        assert reason in refused.err


def test_options_of_other_models_are_refused(cmseg: Cmseg, fields: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    for arguments, named in (
        (("train", fields, "--model", "stage", "--case", 1), "--case"),
        (("train", fields, "--model", "stage", "--initial", "packaged"), "--initial"),
        (("train", fields, "--unet", "packaged"), "--unet"),
        (("evaluate", trained[0], fields, "--case", 1), "--case"),
        (("evaluate", "packaged", fields, "--unet", "packaged"), "--unet"),
    ):
        refused = cmseg(*arguments)
        assert refused.status == 2, refused.err
        assert named in refused.complaint()
