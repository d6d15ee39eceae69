"""The cells most in need of a look: which they are, how they are shown, and their files for correction."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from cmseg_core.schema import PipelineConfig, Workspace
from cmseg_core.storage.store import Store
from flows.review import CellToReview, cells_to_review, fetch_cells, illustrated
from flows.submit import submit


@pytest.fixture
def published(store: Store, local: Workspace, tiny: Path, config: PipelineConfig) -> Store:
    """A store with two published acquisitions of three cells each."""
    from flows.nightly import nightly

    for name, truth in (("one", None), ("two", str(tiny / "cells.tif"))):
        submit(str(tiny / "stack.tif"), name, store, truth_cells=truth)
    nightly(config=config, workspace=local)
    return store


@pytest.mark.parametrize("store", ["folder", "s3"], indirect=True)
def test_worst_cells_come_first_with_pictures_and_files(published: Store, tmp_path: Path) -> None:
    every = cells_to_review(published, ["one", "two"], 100)
    assert len(every) == 6 and {cell["acquisition"] for cell in every} == {"one", "two"}
    scores = [cell["review_score"] for cell in every]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0
    worst = cells_to_review(published, ["two"], 2)
    assert worst == [cell for cell in every if cell["acquisition"] == "two"][:2]

    pictures = re.findall(r"!\[cell \d+\]\(data:image/webp;base64,([^)]+)\)", illustrated(published, worst))
    drawn = [cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR) for text in pictures]
    assert len(drawn) == 4 and all(one.std() > 1 for one in drawn)
    raw, labelled = drawn[:2]
    assert np.ptp(labelled.astype(int), axis=2).max() > 30 > np.ptp(raw.astype(int), axis=2).max()

    fetched, left = fetch_cells(published, worst, tmp_path / "look")
    assert len(fetched) == 2 and left == []
    corrected = Path(fetched[0], "organelles.tif")
    assert corrected.is_file() and Path(fetched[0], "image.tif").is_file()
    corrected.write_bytes(b"corrected by hand")
    assert fetch_cells(published, worst, tmp_path / "look") == ([], fetched)
    assert corrected.read_bytes() == b"corrected by hand"


def test_a_cell_without_organelles_is_shown_without_a_picture(store: Store) -> None:
    cell = CellToReview(
        acquisition="one", cell_id=3, review_score=1.0, stage=None, flags=["failed"], place="acquisitions/one/cells/3"
    )
    assert illustrated(store, [cell]).splitlines() == [
        "**one, cell 3**: review score 1.00, failed",
        "",
        "its organelles could not be segmented",
    ]
