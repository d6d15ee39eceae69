"""``cmseg evaluate``: one document, tables for people, and one line for what does not fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

Cmseg = Any
CLASSES = ("cytoplasm", "plastid", "mitochondrion", "peroxisome", "nucleus")


def test_a_model_is_scored_by_class_stage_and_direction(cmseg: Cmseg, unet: Path, phantom: Path) -> None:
    done = cmseg("evaluate", unet, phantom, "--json")
    assert done.status == 0, done.err
    scores = done.document()
    assert set(CLASSES) < set(scores["iou"]) == set(scores["dice"])
    assert set(scores["directions"]) == {"one", "three", "z", "y", "x"}
    assert scores["directions"]["three"] == scores["iou"]
    fusion = scores["fusion"]
    for name in CLASSES:
        best = max(scores["directions"][way][name] for way in "zyx")
        assert scores["directions"][fusion["best"][name]][name] == best
        assert fusion["gain"][name] == pytest.approx(scores["iou"][name] - best)
        assert (name in fusion["lost"]) == (fusion["gain"][name] < 0)
    assert {cell["stage"] for cell in scores["cells"]} == {int(stage) for stage in scores["per_stage"]}
    for name in CLASSES:
        low, high = scores["intervals"][name]
        assert 0 <= low <= scores["iou"][name] <= high <= 1
    assert 0 <= scores["calibration"]["error_after"] <= 1
    review = scores["review"]
    assert set(review) == {"aurc", "aurc_random", "worst_fifth_found"}
    assert all(0 <= value <= 1 for value in review.values())
    assert all(0 <= cell["review_score"] <= 1 for cell in scores["cells"])
    assert scores["model"]["sha256"]
    table = cmseg("evaluate", unet, phantom).out
    assert all(
        name in table
        for name in (
            *CLASSES,
            "best dir.",
            "3 dir.",
            "best single direction in",
            "stage 1",
            "calibration",
            "risk-coverage",
        )
    )


def test_a_sam_is_scored_beside_the_classical_method(cmseg: Cmseg, phantom: Path, tmp_path: Path) -> None:
    quick = tmp_path / "quick.yaml"
    quick.write_text("foreground: {directions: 1, points_per_side: 6}\n")
    done = cmseg("evaluate", "packaged", phantom, "--role", "sam", "--config", quick, "--json")
    assert done.status == 0, done.err
    scores = done.document()
    (field,) = scores["fields"]
    assert (field["name"], field["cells"]) == ("tiny", 3)
    for method in ("sam", "threshold"):
        assert scores[method]["ap50"] == scores[method]["ap"]["0.50"] == field[method]["ap50"] == 1.0
        assert set(field[method]) | {"ap"} == set(scores[method])
        curve = list(scores[method]["ap"].values())
        assert curve == sorted(curve, reverse=True)
    assert scores["better"] in ("sam", "threshold")


def test_what_a_sam_cannot_be_scored_on_gets_one_line(cmseg: Cmseg, unet: Path, phantom: Path, tmp_path: Path) -> None:
    place = {"CMSEG_WORKSPACE": str(tmp_path / "workspace")}
    assert cmseg("dataset", "create", "mine", **place).status == 0
    truth = ("--labels", phantom / "organelles.tif", "--cells", phantom / "cells.tif")
    assert cmseg("dataset", "add", "mine", "--image", phantom / "stack.tif", *truth, **place).status == 0
    for arguments, reason in (
        (("packaged", "mine", "--role", "sam"), "does not tell cells apart"),
        (("packaged", phantom, "--role", "sam", "--case", 1), "is for models of organelles"),
        (("packaged", phantom, "--role", "sam", "--unet", unet), "is for classifiers of the stage"),
        (("sam-vit-b", phantom), "cmseg models fetch sam-vit-b"),
    ):
        refused = cmseg("evaluate", *arguments, **place)
        assert (refused.status, reason in refused.complaint()) == (2, True), refused.err


def test_an_empty_data_set_gets_one_line(cmseg: Cmseg, unet: Path, tmp_path: Path) -> None:
    place = {"CMSEG_WORKSPACE": str(tmp_path / "workspace")}
    (tmp_path / "two.json").write_text('{"classes": [{"id": 0, "name": "outside"}, {"id": 1, "name": "vesicle"}]}')
    assert cmseg("dataset", "create", "two", "--taxonomy", tmp_path / "two.json", **place).status == 0
    empty = cmseg("evaluate", unet, "two", **place)
    assert (empty.status, "holds no sample" in empty.complaint()) == (2, True)


@pytest.mark.parametrize("content", [pickle.dumps({"weights": [1]}), b"PK\x03\x04 cut off", b""])
def test_a_file_that_is_no_model_is_refused(cmseg: Cmseg, phantom: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.keras").write_bytes(content)
    refused = cmseg("evaluate", tmp_path / "bad.keras", phantom)
    assert refused.status == 2
    assert "bad.keras" in refused.complaint()
