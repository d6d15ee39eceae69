"""Labelled acquisitions on disk are known by their content, not by their path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cmseg_core.errors import InputError
from flows.labelled import content_digest, find_labelled


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "field"
    folder.mkdir(parents=True)
    for name in ("stack", "cells", "organelles"):
        (folder / f"{name}.tif").write_bytes(name.encode())
    truth = {"cells": "cells.tif", "organelles": "organelles.tif"}
    facts = {"voxel_size": {"z": 9, "y": 5, "x": 5}, "stages": {"1": 2}, "truth": truth}
    (folder / "acquisition.json").write_text(json.dumps(facts))
    return folder


def test_the_digest_follows_the_content(labelled: Path, tmp_path: Path) -> None:
    first = content_digest(find_labelled(labelled))
    elsewhere = shutil.copytree(labelled, tmp_path / "there" / "field")
    assert content_digest(find_labelled(elsewhere)) == first
    facts = json.loads((elsewhere / "acquisition.json").read_text())
    (elsewhere / "acquisition.json").write_text(json.dumps({**facts, "stages": {"1": 3}}))
    other_stage = content_digest(find_labelled(elsewhere))
    (labelled / "organelles.tif").write_bytes(b"corrected")
    assert len({first, other_stage, content_digest(find_labelled(labelled))}) == 3


def test_an_absent_truth_is_named(labelled: Path) -> None:
    (labelled / "organelles.tif").unlink()
    with pytest.raises(InputError, match=r"organelles\.tif: cannot be read"):
        content_digest(find_labelled(labelled))
