"""The manifest names every file truly, and a result appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cmseg_core.errors import InputError
from cmseg_core.schema import Acquisition, Manifest, VoxelSize
from cmseg_core.storage import manifest

ACQUISITION = Acquisition(
    name="night-1", source="stack.tif", sha256="0" * 64, bytes=10, voxel_size=VoxelSize(z=8, y=4, x=4)
)
FILES = {"cells.csv": b"cell_id\n1\n", "volume.ome.zarr/0/c/0": b"chunk", "volume.ome.zarr/zarr.json": b"{}"}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_every_file_is_listed_with_its_hash(result: Path) -> None:
    built = _build(result)
    assert [(o.path, o.bytes, o.sha256) for o in built.outputs] == [
        (name, len(content), hashlib.sha256(content).hexdigest()) for name, content in sorted(FILES.items())
    ]
    assert manifest.read(result) == built == manifest.existing_run(result)
    assert manifest.verify(result) == []
    assert sorted(path.name for path in result.iterdir()) == ["cells.csv", "manifest.json", "volume.ome.zarr"]


def test_the_manifest_itself_is_the_same_every_time(result: Path) -> None:
    _build(result)
    first = (result / "manifest.json").read_bytes()
    _build(result)
    assert (result / "manifest.json").read_bytes() == first


def test_verify_finds_every_kind_of_damage(result: Path) -> None:
    _build(result)
    (result / "cells.csv").write_bytes(b"cell_id\n2\n")
    (result / "volume.ome.zarr/0/c/0").unlink()
    (result / "volume.ome.zarr/zarr.json").write_bytes(b"{ }")
    (result / "extra").write_bytes(b"")
    assert manifest.verify(result) == [
        "cells.csv: content differs from the manifest",
        "extra: not in the manifest",
        "volume.ome.zarr/0/c/0: missing",
        "volume.ome.zarr/zarr.json: 3 bytes in place of 2",
    ]


def test_a_folder_without_or_with_a_broken_manifest(result: Path) -> None:
    assert manifest.existing_run(result) is None
    with pytest.raises(InputError, match="cannot be read"):
        manifest.verify(result)
    (result / "manifest.json").write_text('{"acquisition": 1}')
    with pytest.raises(InputError, match="is not a manifest"):
        manifest.existing_run(result)


def test_a_result_appears_under_its_name_in_one_step(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with manifest.staging(out) as folder:
        (folder / "cells.csv").write_bytes(b"x")
        _build(folder)
        assert not out.exists()
        assert manifest.publish_folder(folder, out) == out
    assert manifest.verify(out) == []
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path: Path, result: Path) -> None:
    (tmp_path / "empty").mkdir()
    manifest.publish_folder(result, tmp_path / "empty")
    assert (tmp_path / "empty" / "cells.csv").exists()
    (tmp_path / "second").mkdir()
    with pytest.raises(InputError, match="is not empty"):
        manifest.publish_folder(tmp_path / "second", tmp_path / "empty")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is not a folder"):
        manifest.check_output(tmp_path / "file")
    assert (tmp_path / "second").is_dir()


@pytest.mark.parametrize("parent", ["file", "/proc"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        manifest.check_output(tmp_path / parent / "out")


def test_a_failed_run_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), manifest.staging(tmp_path / "out") as folder:
        (folder / "half").write_bytes(b"x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_rest_of_a_killed_run_is_cleared_and_a_live_one_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").write_bytes(b"x")
    (tmp_path / ".out.lock").write_bytes(b"")
    with manifest.staging(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
        (folder / "new").write_bytes(b"x")
        with pytest.raises(InputError, match="another run"), manifest.staging(tmp_path / "out"):
            pass
        assert (folder / "new").exists()


def test_another_file_system_is_reached_by_a_copy(
    tmp_path: Path, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def across(source: Path, target: Path) -> None:
        if Path(source) == result:
            raise OSError(18, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", across)
    _build(result)
    manifest.publish_folder(result, tmp_path / "out")
    assert manifest.verify(tmp_path / "out") == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _build(folder: Path) -> Manifest:
    models = {"unet": {"reference": "packaged", "version": "1", "sha256": "1" * 64}}
    return manifest.build(
        folder, ACQUISITION, {"preset": "default"}, {"cells": "2" * 64}, {"cmseg": "1"}, models, {"4": "x"}
    )
