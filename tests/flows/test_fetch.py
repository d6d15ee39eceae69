"""Published results brought to a folder: whole or in part, checked, and never over something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmseg_core.errors import InputError
from cmseg_core.schema import PipelineConfig, Workspace
from cmseg_core.storage import manifest
from cmseg_core.storage.store import Store
from flows.fetch import fetch_result
from flows.submit import submit


@pytest.fixture
def published(store: Store, local: Workspace, tiny: Path, config: PipelineConfig) -> Store:
    """A store with a published acquisition of three cells."""
    from flows.nightly import nightly

    submit(str(tiny / "stack.tif"), "one", store)
    nightly(config=config, workspace=local)
    return store


@pytest.mark.parametrize("store", ["folder", "s3"], indirect=True)
def test_a_result_comes_whole_and_checked(published: Store, tmp_path: Path) -> None:
    told: list[int] = []
    report = fetch_result(published, "one", tmp_path, ["report.html"], told.append)
    assert report == [tmp_path / "one" / "report.html"] and sum(told) == 1
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["report.html"]
    cell = fetch_result(published, "one", tmp_path, ["cells/2/", "cells.csv"])
    assert {path.name for path in cell} >= {"model.glb", "organelles.tif", "cells.csv"}
    assert {path.parent.name for path in cell} == {"one", "2"}

    (tmp_path / "one" / "report.html").touch()
    written = (tmp_path / "one" / "report.html").stat().st_mtime_ns
    files = fetch_result(published, "one", tmp_path)
    assert manifest.verify(tmp_path / "one") == []
    assert len(files) == len(manifest.read(tmp_path / "one").outputs)
    assert (tmp_path / "one" / "report.html").stat().st_mtime_ns == written, "what is there is not fetched again"
    assert fetch_result(published, "one", tmp_path) == files


def test_nothing_is_overwritten(published: Store, tmp_path: Path) -> None:
    corrected = tmp_path / "one" / "cells" / "1" / "organelles.tif"
    corrected.parent.mkdir(parents=True)
    corrected.write_bytes(b"corrected by hand")
    with pytest.raises(InputError, match="organelles.tif: is there already, with other content"):
        fetch_result(published, "one", tmp_path)
    assert corrected.read_bytes() == b"corrected by hand"
    assert sorted(path.name for path in (tmp_path / "one").rglob("*")) == ["1", "cells", "organelles.tif"]


def test_what_was_damaged_at_rest_is_refused(published: Store, tmp_path: Path) -> None:
    key = "acquisitions/one/cells.csv"
    published.put(key, published.get(key)[:-1] + b"9")
    with pytest.raises(InputError, match="cells.csv: differs from its checksum"):
        fetch_result(published, "one", tmp_path)
    assert not (tmp_path / "one" / "cells.csv").exists() and not (tmp_path / "one" / "manifest.json").exists()


def test_a_part_that_there_is_not_is_refused(published: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cells/9: is no part of the result one"):
        fetch_result(published, "one", tmp_path, ["report.html", "cells/9"])
    assert not (tmp_path / "one").exists()


def test_a_manifest_leads_nowhere_else(published: Store, tmp_path: Path) -> None:
    key = "acquisitions/one/manifest.json"
    published.put(key, published.get(key).replace(b'"cells.csv"', b'"../cells.csv"'))
    with pytest.raises(InputError, match="not a valid key"):
        fetch_result(published, "one", tmp_path / "results")
    assert not (tmp_path / "results").exists()
