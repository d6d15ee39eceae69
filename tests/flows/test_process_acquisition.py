"""One acquisition from files to files, with real Prefect, a real store and a tiny network."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

from cmseg_core.acquisition.reader import read_labels
from cmseg_core.errors import InputError
from cmseg_core.schema import PipelineConfig
from cmseg_core.storage import manifest, omezarr
from cmseg_core.storage.store import Store

Make = Callable[..., Any]


def run(request: Any) -> Any:
    from flows.process_acquisition import process_acquisition

    return process_acquisition(request)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def touched(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(prefect_home: Path, tiny: Path, tiny_unet: Path, config: PipelineConfig, tmp_path_factory: Any) -> Any:
    """A finished run, which the tests only look at: its request and its result."""
    from tasks.request import AcquisitionRequest

    folder = tmp_path_factory.mktemp("finished")
    request = AcquisitionRequest(
        name="tiny",
        source=str(tiny / "stack.tif"),
        truth_cells=str(tiny / "cells.tif"),
        truth_organelles=str(tiny / "organelles.tif"),
        config=config,
        store=str(folder / "store"),
        out=folder / "out",
        unet=str(tiny_unet),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        workspace=folder / "workspace",
    )
    return request, run(request)


def test_result_holds_every_file_of_the_design(finished: Any) -> None:
    request, result = finished
    out = request.out
    assert result.state == "published" and result.recomputed and result.cells == 3 and not result.quarantined_cells
    assert {p.name for p in out.iterdir()} == {
        "manifest.json",
        "volume.ome.zarr",
        "cells.csv",
        "cells.parquet",
        "cells",
        "qc.json",
        "evaluation.json",
        "report.html",
    }
    for cell in ("1", "2", "3"):
        names = {p.name for p in (out / "cells" / cell).iterdir()}
        assert names == {"image.tif", "organelles.tif", "confidence.tif", "model.glb"}
    assert manifest.verify(out) == []


def test_volume_carries_the_acquired_samples_and_three_labels(finished: Any, tiny: Path) -> None:
    request, _ = finished
    root = request.out / "volume.ome.zarr"
    array, voxel_size = omezarr.open_image(root)
    np.testing.assert_array_equal(array[:], tifffile.imread(tiny / "stack.tif"))
    assert voxel_size.zyx == (60, 50, 50)
    cells, _ = omezarr.open_image(root / "labels" / "cells")
    mask, _ = omezarr.open_image(root / "labels" / "foreground")
    organelles, _ = omezarr.open_image(root / "labels" / "organelles")
    assert set(np.unique(cells[:])) == {0, 1, 2, 3}
    assert not np.any((cells[:] > 0) & (mask[:] == 0))
    assert organelles.shape == cells.shape


def test_tables_agree_and_crops_lie_in_their_boxes(finished: Any) -> None:
    request, _ = finished
    with open(request.out / "cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(request.out / "cells.parquet").to_pylist()
    assert [int(row["cell_id"]) for row in rows] == [row["cell_id"] for row in table] == [1, 2, 3]
    assert all(float(a["volume_um3"]) == b["volume_um3"] for a, b in zip(rows, table, strict=True))
    cells, _ = omezarr.open_image(request.out / "volume.ome.zarr" / "labels" / "cells")
    for row in table:
        box = tuple(slice(row[f"bbox_{axis}0"], row[f"bbox_{axis}1"]) for axis in "zyx")
        inside = np.count_nonzero(cells[box] == row["cell_id"])
        assert inside == np.count_nonzero(cells[:] == row["cell_id"]) > 0
        crop = tifffile.imread(request.out / "cells" / str(row["cell_id"]) / "image.tif")
        labels = tifffile.imread(request.out / "cells" / str(row["cell_id"]) / "organelles.tif")
        assert crop.shape == labels.shape and all(n >= s.stop - s.start for n, s in zip(crop.shape, box, strict=True))
        assert (
            read_labels(request.out / "cells" / str(row["cell_id"]) / "organelles.tif", crop.shape).shape == crop.shape
        )


def test_evaluation_has_the_stated_form(finished: Any) -> None:
    request, result = finished
    scores = json.loads((request.out / "evaluation.json").read_text())
    assert scores == result.evaluation
    assert set(scores["cells"]) == {"ap50", "ap75", "pq", "voi_split", "voi_merge", "arand", "count_error"}
    assert scores["cells"]["ap50"] == 1 and scores["cells"]["count_error"] == 0
    assert set(scores["organelles"]) == {"iou", "dice", "mean_iou", "per_stage"}
    assert set(scores["organelles"]["per_stage"]) == {"1", "2", "3"}
    assert {type(v) for v in scores["organelles"]["iou"].values()} <= {float, type(None)}


def test_second_run_verifies_and_touches_nothing(finished: Any) -> None:
    request, _ = finished
    before = touched(request.out) | touched(Path(request.store))
    again = run(request)
    assert not again.recomputed and again.cells == 3 and again.evaluation is not None
    assert touched(request.out) | touched(Path(request.store)) == before


def test_another_folder_with_the_same_store_recomputes_no_stage(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, _ = finished
    before = touched(Path(request.store))
    monkeypatch.setattr("cmseg_core.organelles.inference.segment_cell", None)  # would fail where it is called
    run(request.model_copy(update={"out": tmp_path / "other"}))
    assert touched(Path(request.store)) == before
    assert content(tmp_path / "other") == content(request.out)


def test_fresh_store_gives_the_same_bytes(finished: Any, make_request: Make) -> None:
    request, _ = finished
    anew = make_request()
    run(anew)
    assert content(anew.out) == content(request.out)


def test_failing_cell_is_quarantined_and_the_others_finish(make_request: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmseg_core.organelles import inference

    whole, calls = inference.segment_cell, []

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("this cell cannot be labelled")
        return whole(*args, **kwargs)

    monkeypatch.setattr(inference, "segment_cell", fails_once)
    request = make_request()
    result = run(request)
    assert result.state == "published" and result.quarantined_cells == {"2": "ValueError: this cell cannot be labelled"}
    assert manifest.read(request.out).quarantined_cells == result.quarantined_cells
    assert {p.name for p in (request.out / "cells" / "2").iterdir()} == {"image.tif"}
    assert (request.out / "cells" / "3" / "model.glb").exists()
    row = pq.read_table(request.out / "cells.parquet").to_pylist()[1]
    assert row["review_score"] == 1 and "failed:organelles" in row["flags"]
    assert "cannot be labelled" in (request.out / "report.html").read_text()


def test_run_without_a_single_labelled_cell_is_a_fault(make_request: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmseg_core.organelles.inference.segment_cell", lambda *_: 1 / 0)
    request = make_request()
    with pytest.raises(RuntimeError, match="none of 3 cells could be labelled: ZeroDivisionError"):
        run(request)
    assert not request.out.exists()


def test_killed_run_resumes_where_it_stopped(make_request: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_request()
    with monkeypatch.context() as patch:
        patch.setattr("tasks.deliver.render_report", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(request)
    assert not request.out.exists()
    before = touched(Path(request.store))
    run(request)
    assert touched(Path(request.store)) == before
    assert manifest.verify(request.out) == []


def test_another_stage_classifier_only_measures_anew(make_request: Make, tmp_path: Path) -> None:
    from cmseg_core.morphology.stage_classifier import StageClassifier, save_classifier
    from cmseg_core.schema import C_MEROLAE

    always = StageClassifier(
        taxonomy=C_MEROLAE,
        features=("cell_neck",),
        stages=(2, 4),
        centre=(0.5,),
        scale=(1.0,),
        offset=(0.0, 2.0),
        weights=((0.0,), (0.0,)),
    )
    path = save_classifier(always, tmp_path / "always-4.json")
    first, second = make_request(), make_request(stage_model=str(path), out=tmp_path / "second")
    run(first)
    run(second)
    before, after = (manifest.read(request.out) for request in (first, second))
    assert (before.models["stage"]["version"], after.models["stage"]["version"]) == ("packaged", "file")
    changed = {name for name, key in after.keys.items() if before.keys[name] != key}
    assert changed == {"run", "measure/1", "measure/2", "measure/3"}
    rows = pq.read_table(second.out / "cells.parquet").to_pylist()
    assert all((row["stage"], round(row["stage_confidence"], 6)) in {(4, 0.880797), (None, 0.0)} for row in rows)


def test_transient_failure_of_the_disk_is_retried(make_request: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import preprocess

    whole, calls = preprocess.median_slab, []

    def flaky(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the disk went away for a moment")
        return whole(*args)

    monkeypatch.setattr(preprocess, "median_slab", flaky)
    assert run(make_request()).state == "published"


@pytest.mark.parametrize("dark", [True, False])
def test_field_without_cells_finishes_with_a_warning(make_request: Make, tmp_path: Path, dark: bool) -> None:
    noise = np.random.default_rng(0).normal(120, 8, (24, 40, 40))
    noise[:, 18:22, 18:22] += -60 if dark else 60  # debris: structure, but no cell
    tifffile.imwrite(tmp_path / "empty.tif", noise.clip(0, 255).astype(np.uint8), photometric="minisblack")
    request = make_request(
        source=str(tmp_path / "empty.tif"),
        voxel_size={"z": 60, "y": 50, "x": 50},
        truth_cells=None,
        truth_organelles=None,
        config=PipelineConfig.model_validate(
            {"foreground": {"method": "threshold"}, "quality": {"min_snr": 0}, "instances": {"min_volume_um3": 1.0}}
        ),
    )
    result = run(request)
    assert result.state == "published" and result.cells == 0 and result.evaluation is None
    assert "No cell was found" in (request.out / "report.html").read_text()
    assert pq.read_table(request.out / "cells.parquet").num_rows == 0
    assert manifest.verify(request.out) == []


def test_source_in_a_bucket_gives_the_same_cells(
    s3_store: Store, finished: Any, make_request: Make, tiny: Path
) -> None:
    request, _ = finished
    s3_store.upload_file(tiny / "stack.tif", "shared/stack.tif")
    remote = make_request(source=s3_store.uri_of("shared/stack.tif"), s3_endpoint=s3_store.endpoint)
    result = run(remote)
    assert result.recomputed
    assert (remote.out / "cells.csv").read_bytes() == (request.out / "cells.csv").read_bytes()
    assert manifest.read(remote.out).acquisition.source == remote.source
    with pytest.raises(InputError, match="does not exist"):
        run(make_request(source=s3_store.uri_of("shared/absent.tif"), out=remote.out.with_name("other")))


def test_own_result_serves_as_a_source(finished: Any, make_request: Make) -> None:
    request, _ = finished
    again = make_request(source=str(request.out / "volume.ome.zarr"))
    assert run(again).cells == 3
    assert (again.out / "cells.csv").read_bytes() == (request.out / "cells.csv").read_bytes()


# ---------------------------------------------------------------------------------------------------------- bad input


def _no_voxel_size(folder: Path) -> dict[str, Any]:
    tifffile.imwrite(folder / "plain.tif", np.zeros((10, 32, 32), np.uint8), photometric="minisblack")
    return {"source": str(folder / "plain.tif")}


def _no_tiff(folder: Path) -> dict[str, Any]:
    (folder / "words.tif").write_text("not an image")
    return {"source": str(folder / "words.tif"), "voxel_size": {"z": 1, "y": 1, "x": 1}}


def _unequal_slices(folder: Path) -> dict[str, Any]:
    (folder / "slices").mkdir()
    for number, side in enumerate((32, 32, 40)):
        tifffile.imwrite(folder / "slices" / f"s{number}.tif", np.zeros((side, side), np.uint8))
    return {"source": str(folder / "slices"), "voxel_size": {"z": 1, "y": 1, "x": 1}}


def _colour(folder: Path) -> dict[str, Any]:
    tifffile.imwrite(folder / "colour.tif", np.zeros((10, 32, 32, 3), np.uint8), photometric="rgb")
    return {"source": str(folder / "colour.tif"), "voxel_size": {"z": 1, "y": 1, "x": 1}}


def _empty_folder(folder: Path) -> dict[str, Any]:
    (folder / "nothing").mkdir()
    return {"source": str(folder / "nothing"), "voxel_size": {"z": 1, "y": 1, "x": 1}}


def _wrong_truth(folder: Path) -> dict[str, Any]:
    tifffile.imwrite(folder / "truth.tif", np.zeros((4, 8, 8), np.uint16), photometric="minisblack")
    return {"truth_cells": str(folder / "truth.tif")}


def _no_model(folder: Path) -> dict[str, Any]:
    return {"unet": str(folder / "absent.keras")}


def _no_classifier(folder: Path) -> dict[str, Any]:
    (folder / "classifier.json").write_text('{"format": 1}')
    return {"stage_model": str(folder / "classifier.json")}


def _little_memory(_folder: Path) -> dict[str, Any]:
    return {"max_memory_gb": 0.5}


BAD = [
    _no_voxel_size,
    _no_tiff,
    _unequal_slices,
    _colour,
    _empty_folder,
    _wrong_truth,
    _no_model,
    _no_classifier,
    _little_memory,
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(make_request: Make, tmp_path: Path, bad: Any) -> None:
    request = make_request(**bad(tmp_path), out=tmp_path / "new" / "folders" / "out")
    with pytest.raises(InputError) as refused:
        run(request)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "new").exists()
    assert not Path(request.store).exists() or not Store.open(request.store).list()
    assert not any((request.workspace / "scratch").iterdir())


def test_folder_that_holds_something_else_is_left_alone(make_request: Make) -> None:
    request = make_request()
    request.out.mkdir()
    (request.out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        run(request)
    assert content(request.out) == {"notes.txt": b"mine"}


def test_folder_that_holds_another_run_is_left_alone(finished: Any) -> None:
    request, _ = finished
    before = touched(request.out)
    other = request.config.model_copy(update={"instances": request.config.instances.model_copy(update={"h_nm": 90})})
    with pytest.raises(InputError, match="another run"):
        run(request.model_copy(update={"config": other}))
    assert touched(request.out) == before


def test_place_that_cannot_be_written_is_refused(make_request: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError):
        run(make_request(out=tmp_path / "file" / "out"))


def test_result_that_was_changed_is_not_taken_for_the_same(make_request: Make) -> None:
    request = make_request(truth_cells=None, truth_organelles=None)
    run(request)
    (request.out / "cells.csv").write_text("changed")
    with pytest.raises(InputError, match="differs from its manifest"):
        run(request)
