"""Training runs keep what they are given, and end as they ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cmseg_core
from cmseg_core.tracking.catalogue import describe
from cmseg_core.tracking.connection import connect, default_tracking_uri
from cmseg_core.tracking.registry import register_file
from cmseg_core.tracking.runs import end_run, flatten, training_run


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return default_tracking_uri(tmp_path_factory.mktemp("mlflow"))


def test_a_run_keeps_settings_epochs_and_files(uri: str, tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(b"PK")
    many = {f"p{number}": number for number in range(150)}
    with training_run(uri, "cmseg-unet", name="night", params={"optimiser": {"rate": 0.1}, **many}) as run:
        for epoch, loss in enumerate((0.5, 0.25)):
            run.log_metrics({"loss": loss, "iou": {"nucleus": None, "plastid": float("nan")}}, step=epoch)
        run.log_artifact(tmp_path / "model.keras", "files")
        run.set_tags({"preset": "best"})
        version = register_file(tmp_path / "model.keras", "m-run", "unet", uri, run_id=run.run_id)
    client = connect(uri)
    kept = client.get_run(run.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.data.params["optimiser.rate"] == "0.1"
    assert len(kept.data.params) == 151
    assert {k: v for k, v in kept.data.metrics.items() if not k.startswith("system/")} == {"loss": 0.25}
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(0, 0.5), (1, 0.25)]
    assert [f.path for f in client.list_artifacts(run.run_id, "files")] == ["files/model.keras"]
    assert describe(f"models:/m-run/{version}", uri).run_id == run.run_id


def test_a_run_knows_its_circumstances(uri: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "tables.txt").write_text("IoU")
    with training_run(uri, "cmseg-unet") as run:
        for digest, context in (("a" * 64, "training"), ("b" * 64, "validation")):
            run.log_dataset("mine", digest, f"s3://lab/{context}", context, {"samples": ["1", "2"]})
        run.log_artifacts(tmp_path)
    client = connect(uri)
    kept = client.get_run(run.run_id)
    assert kept.data.tags["cmseg.version"] == cmseg_core.__version__
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert kept.data.tags.get("mlflow.source.git.commit", "") == head.stdout.strip()
    # However short the run, the machine has been looked at once.
    assert kept.data.metrics["system/system_memory_usage_megabytes"] > 0
    found = {i.tags[0].value: i.dataset for i in kept.inputs.dataset_inputs}
    assert {c: (d.name, d.digest, json.loads(d.source)["uri"], d.source_type) for c, d in found.items()} == {
        "training": ("mine", "a" * 32, "s3://lab/training", "s3"),
        "validation": ("mine", "b" * 32, "s3://lab/validation", "s3"),
    }
    assert json.loads(found["training"].profile) == {"samples": ["1", "2"], "digest": "a" * 64}
    assert [f.path for f in client.list_artifacts(run.run_id, "evaluation")] == ["evaluation/tables.txt"]


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_ends_as_it_ended(uri: str, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), training_run(uri, "cmseg-unet") as run:
        raise error
    assert connect(uri).get_run(run.run_id).info.status == status


def test_a_run_that_broke_off_goes_on(uri: str) -> None:
    with pytest.raises(KeyboardInterrupt), training_run(uri, "cmseg-unet", params={"seed": 1}) as first:
        first.log_metrics({"loss": 0.5}, step=1)
        raise KeyboardInterrupt
    with training_run(uri, "cmseg-unet", params={"seed": 1, "initial": "another name"}, resume=first.run_id) as run:
        run.log_metrics({"loss": 0.25}, step=2)
        assert connect(uri).get_run(run.run_id).info.status == "RUNNING"
    client = connect(uri)
    kept = client.get_run(first.run_id)
    assert (run.run_id, kept.info.status, kept.data.params) == (first.run_id, "FINISHED", {"seed": "1"})
    assert [m.value for m in client.get_metric_history(run.run_id, "loss")] == [0.5, 0.25]
    end_run(uri, run.run_id)
    assert client.get_run(run.run_id).info.status == "KILLED"
    client.delete_run(run.run_id)
    for gone in (run.run_id, "0" * 32):
        end_run(uri, gone)
        with training_run(uri, "cmseg-unet", params={"seed": 2}, resume=gone) as anew:
            assert anew.run_id != gone
        assert client.get_run(anew.run_id).data.params == {"seed": "2"}


def test_runs_and_artifacts_stay_in_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "file").write_bytes(b"x")
    with training_run(default_tracking_uri(tmp_path / "workspace"), "e") as run:
        run.log_artifact(tmp_path / "file")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert list((tmp_path / "workspace" / "mlartifacts").rglob("file"))


def test_importing_the_package_does_not_import_mlflow() -> None:
    code = "import sys, cmseg_core.tracking.registry, cmseg_core.tracking.runs; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": 2}, "e": 3}) == {"a.b.c": 1, "a.d": 2, "e": 3}
