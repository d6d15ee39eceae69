"""Every command does its work, from the outside."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch

from cmseg_core.tracking.registry import packaged_model

COMMANDS = (
    "demo",
    "run",
    "phantom",
    "submit",
    "nightly",
    "status",
    "fetch",
    "review",
    "dataset",
    "train",
    "evaluate",
    "models",
    "up",
    "down",
    "doctor",
)
DELIVERED = {
    "manifest.json",
    "volume.ome.zarr",
    "cells.csv",
    "cells.parquet",
    "cells",
    "qc.json",
    "evaluation.json",
    "report.html",
}


def _bytes(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_help_names_every_command(cmseg: Callable[..., Any]) -> None:
    text = cmseg("--help").out
    assert all(f" {name} " in text for name in COMMANDS)
    for name in COMMANDS:
        assert "Usage: cmseg" in cmseg(name, "--help").out


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import sys; from flows.cli import invoke; invoke(['--help']); invoke(['run', '--help']); "
        "heavy = {'tensorflow', 'keras', 'torch', 'prefect', 'mlflow', 'zarr', 'cv2', 'numba'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_phantom_writes_a_stack_and_its_truth(cmseg: Callable[..., Any], tmp_path: Path) -> None:
    made = cmseg(
        "phantom", tmp_path / "a", "--cells", 2, "--shape", 20, 40, 44, "--voxel-size", 90, 80, 70,
        "--defect", "noise", "--defect", "drift", "--hard", "--json",
    )  # fmt: skip
    assert made.status == 0, made.err
    assert made.document()["shape"] == [20, 40, 44]
    facts = json.loads((tmp_path / "a" / "acquisition.json").read_text())
    assert facts["voxel_size"] == {"z": 90.0, "y": 80.0, "x": 70.0}
    assert sorted(facts["defects"]) == ["drift", "noise"]
    image, cells, organelles = (tifffile.imread(tmp_path / "a" / f"{n}.tif") for n in ("stack", "cells", "organelles"))
    assert image.shape == cells.shape == organelles.shape == (20, 40, 44)
    assert np.array_equal(cells > 0, organelles > 0)


def test_phantoms_of_one_seed_are_alike(cmseg: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ("--cells", 2, "--voxel-size", 80, 80, 80, "--seed")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert cmseg("phantom", tmp_path / name, *arguments, seed).status == 0
    first, second, other = ((tmp_path / name / "stack.tif").read_bytes() for name in "abc")
    assert first == second
    assert first != other


def test_run_delivers_everything_and_a_second_time_nothing_anew(
    alone: Callable[..., Any], phantom: Path, unet: Path, threshold: Path, tmp_path: Path
) -> None:
    command = ("run", phantom, tmp_path / "out", "--config", threshold, "--unet", unet, "--json")
    first = alone(*command)
    assert first.status == 0, first.err
    assert first.document()["recomputed"] is True
    assert first.document()["cells"] > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == DELIVERED
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["cells"]["ap50"] is not None
    with open(tmp_path / "out" / "cells.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == first.document()["cells"]
    before = _bytes(tmp_path / "out")
    second = alone(*command)
    assert second.status == 0, second.err
    assert second.document()["recomputed"] is False
    assert _bytes(tmp_path / "out") == before


def test_run_leaves_the_result_of_another_run_alone(
    cmseg: Callable[..., Any], phantom: Path, unet: Path, threshold: Path, tmp_path: Path
) -> None:
    command = ("run", phantom, tmp_path / "out", "--unet", unet, "--config")
    assert cmseg(*command, threshold).status == 0
    before = _bytes(tmp_path / "out")
    other = tmp_path / "other.yaml"
    other.write_text("foreground: {method: threshold}\norganelles: {directions: 1}\n")
    refused = cmseg(*command, other)
    assert refused.status == 2
    assert "another run" in refused.err
    assert _bytes(tmp_path / "out") == before


def test_train_registers_a_challenger(cmseg: Callable[..., Any], unet: Path) -> None:
    assert unet.is_file()
    known = cmseg("models", "list", "--json").document()["models"]
    assert any(m["role"] == "unet" and "challenger" in m["aliases"] for m in known)


def test_a_training_is_on_record(cmseg: Callable[..., Any], phantom: Path, unet: Path, tmp_path: Path) -> None:
    """The record of a run holds scores and pictures of its validation, and the model with what it needs."""
    place = {"CMSEG_WORKSPACE": str(tmp_path / "workspace")}
    (tmp_path / "settings.yaml").write_text("{epochs: 1, steps_per_epoch: 1, batch_size: 2, precision: float32}\n")
    give = ("--config", tmp_path / "settings.yaml", "--initial", unet, "--validation", phantom, "--json")
    trained = cmseg("train", phantom, *give, **place)
    assert trained.status == 0, trained.err
    kept = tmp_path / "workspace" / "mlartifacts" / trained.document()["run_id"] / "artifacts"
    tables = (kept / "evaluation" / "tables.txt").read_text()
    assert all(text in tables for text in ("3 cells", "3 dir.", "peroxisome", "calibration"))
    scores = json.loads((kept / "evaluation" / "scores.json").read_text())
    assert {cell["name"] for cell in scores["cells"]} == {f"tiny/{n}" for n in (1, 2, 3)}
    confusion = json.loads((kept / "evaluation" / "confusion.json").read_text())
    table = np.array(confusion["voxels"])
    right, either = np.diag(table), table.sum(axis=0) + table.sum(axis=1) - np.diag(table)
    for name, hit, any_of in zip(confusion["classes"], right, either, strict=True):
        assert scores["iou"][name] == pytest.approx(hit / any_of)
    pictures = [kept / "evaluation" / "confusion.png", *(kept / "samples").glob("tiny-*.png")]
    assert len(pictures) >= 4
    assert all(cv2.imread(str(path)).std() > 10 for path in pictures)
    (model,) = [m for m in cmseg("models", "list", "--json", **place).document()["models"] if m["sha256"]]
    described = (Path(model["file"].removeprefix("file://")) / "MLmodel").read_text()
    assert "signature" in described
    assert model["sha256"] in described


def test_a_training_goes_on_from_a_model(cmseg: Callable[..., Any], phantom: Path, unet: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("{epochs: 1, steps_per_epoch: 1, batch_size: 2, precision: float32, learning_rate: 1.0e-9}\n")
    out = tmp_path / "on.keras"
    made = cmseg("train", phantom, "--config", settings, "--initial", unet, "--out", out, "--seed", 2)
    assert made.status == 0, made.err
    # A network of the preset's width would be many times larger.
    assert out.stat().st_size < 1.5 * unet.stat().st_size
    refused = cmseg("train", phantom, "--model", "stage", "--initial", unet)
    assert refused.status == 2
    assert "--initial" in refused.complaint()
    settings.write_text("{steps: 1, images_per_step: 1, learning_rate: 1.0e-9}\n")
    out = tmp_path / "on.pt"
    made = cmseg("train", phantom, "--model", "sam", "--config", settings, "--initial", "packaged", "--out", out)
    assert made.status == 0, made.err
    weights = [torch.load(path, weights_only=True)["weights"] for path in (packaged_model("sam"), out)]
    assert all(torch.allclose(a.float(), b.float(), atol=1e-3) for a, b in zip(*map(dict.values, weights), strict=True))


def test_a_model_is_imported_by_name_and_resolved(
    cmseg: Callable[..., Any], phantom: Path, unet: Path, threshold: Path, tmp_path: Path
) -> None:
    made = cmseg("models", "import", unet, "--role", "unet", "--name", "mine", "--alias", "trusted", "--json")
    assert made.document() == {"model": "models:/mine/1", "alias": "trusted"}
    done = cmseg("run", phantom, tmp_path / "out", "--config", threshold, "--unet", "models:/mine@trusted", "--json")
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["models"]["unet"]["version"] == "1"


def test_a_file_that_is_no_model_is_not_imported(cmseg: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "bad.keras").write_bytes(b"\x80\x04not a model")
    refused = cmseg("models", "import", tmp_path / "bad.keras", "--role", "unet")
    assert refused.status == 2
    assert "bad.keras" in refused.err
    assert "Traceback" not in refused.err


def test_submit_nightly_status(
    cmseg: Callable[..., Any], phantom: Path, unet: Path, threshold: Path, tmp_path: Path
) -> None:
    """One good acquisition is published, one bad is quarantined, and neither is taken up again."""
    place = {"CMSEG_STORE": str(tmp_path / "store"), "CMSEG_UNET": str(unet)}
    bad = tmp_path / "bad.tif"
    tifffile.imwrite(bad, np.zeros((12, 40, 40), np.uint8), photometric="minisblack")
    assert cmseg("submit", phantom, "--name", "good", **place).status == 0
    assert cmseg("submit", bad, "--name", "bad", "--voxel-size", 40, 40, 40, **place).status == 0
    again = cmseg("submit", bad, "--name", "bad", "--voxel-size", 40, 40, 40, "--json", **place)
    assert (again.status, again.document()["name"]) == (0, "bad")

    waiting = cmseg("status", "--json", **place).document()["acquisitions"]
    assert {a["name"]: a["state"] for a in waiting} == {"good": "waiting", "bad": "waiting"}

    night = cmseg("nightly", "--config", threshold, "--json", **place)
    assert night.status == 3, night.err
    assert {a["name"]: a["state"] for a in night.document()["acquisitions"]} == {
        "good": "published",
        "bad": "quarantined",
    }
    found = {a["name"]: a for a in cmseg("status", "--json", **place).document()["acquisitions"]}
    assert {name: a["state"] for name, a in found.items()} == {"good": "published", "bad": "quarantined"}
    assert found["bad"]["reason"]
    assert (tmp_path / "store" / "quarantine" / "bad" / "reason.json").is_file()
    assert cmseg("status", "good", **place).status == 0
    review = cmseg("review", "--top", 2, "--to", tmp_path / "look", "--json", **place).document()
    scores = [cell["review_score"] for cell in review["cells"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    assert all((tmp_path / "look" / "good" / str(c["cell_id"]) / "organelles.tif").is_file() for c in review["cells"])
    fetched = cmseg("fetch", "good", "--to", tmp_path, "--only", "report.html", "--only", "cells/1", "--json", **place)
    assert fetched.status == 0, fetched.err
    files = {str(path.relative_to(tmp_path / "good")) for path in (tmp_path / "good").rglob("*") if path.is_file()}
    assert {"report.html", "cells/1/model.glb"} <= files == set(fetched.document()["files"])
    nothing = cmseg("fetch", "bad", "--to", tmp_path, **place)
    assert (nothing.status, "has no result: it is quarantined" in nothing.complaint()) == (2, True)
    assert cmseg("review", "nobody", **place).status == 2
    assert cmseg("status", "nobody", **place).status == 2

    quiet = cmseg("nightly", "--config", threshold, "--json", **place)
    assert quiet.status == 0, quiet.err
    assert quiet.document()["acquisitions"] == []


def test_doctor_says_what_works(cmseg: Callable[..., Any], unet: Path) -> None:
    looked = cmseg("doctor", "--json", CMSEG_UNET=str(unet))
    findings = {f["subject"]: f for f in looked.document()["findings"]}
    assert findings["packages"]["state"] == "ok"
    assert findings["model unet"]["state"] == "ok"
    assert looked.document()["works"] == (looked.status == 0)
    broken = cmseg("doctor", "--json", CMSEG_UNET="/nowhere.keras")
    assert broken.status == 2
    assert "/nowhere.keras" in {f["subject"]: f for f in broken.document()["findings"]}["model unet"]["detail"]


def test_a_fault_of_ours_is_one_line_and_a_file(cmseg: Callable[..., Any], tmp_path: Path) -> None:
    """A registry that cannot be reached is neither the input's fault nor a reason for a screen of traceback."""
    arguments = ("models", "list")
    place = {"CMSEG_MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    fault = cmseg(*arguments, **place)
    assert fault.status == 1
    assert "Traceback" not in fault.err
    log = Path(fault.err.strip().splitlines()[-1].split()[-1])
    assert "Traceback" in log.read_text()
    assert "Traceback" in cmseg(*arguments, "--debug", **place).err


@pytest.mark.slow
@pytest.mark.timeout(1900)
def test_demo(alone: Callable[..., Any], packaged_models: None, tmp_path: Path) -> None:
    """The whole product, with the packaged models, twice: the second demonstration stands beside the first."""
    command = ("demo", "--workspace", tmp_path, "--cells", 5, "--voxel-size", 60, 45, 45, "--json")
    for name in ("demo-1", "demo-2"):
        shown = alone(*command, timeout=900)
        assert shown.status == 0, shown.err
        assert shown.document()["evaluation"]["cells"]["ap50"] > 0.5
        folder = tmp_path / "demo" / "acquisitions" / name
        assert Path(shown.document()["report"]) == folder / "report.html"
        assert {path.name for path in folder.iterdir()} == DELIVERED
    assert _weed_processes(tmp_path) == []


def _weed_processes(folder: Path) -> list[str]:
    """Command lines of object stores that still run on a folder."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "weed" in text and str(folder) in text:
            commands.append(text)
    return commands


@pytest.mark.slow
@pytest.mark.timeout(1900)
def test_a_real_acquisition(
    cmseg: Callable[..., Any], packaged_models: None, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """Real tissue, of which the packaged models know nothing, still goes from stack to report."""
    stack = real_data("flyem_medulla") / "ts1_raw.tif"
    done = cmseg("run", stack, tmp_path / "out", "--voxel-size", 10, 10, 10, "--json", timeout=900)
    assert done.status in (0, 3), done.err
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
