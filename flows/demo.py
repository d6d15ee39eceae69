"""The whole product on a simulated acquisition, with nothing but this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cmseg_core.schema import PipelineConfig, Workspace
from cmseg_core.storage.buckets import ensure_bucket
from cmseg_core.storage.store import Store
from cmseg_core.tracking.connection import default_tracking_uri
from cmseg_core.tracking.registry import ensure_champions
from deployments.object_store import object_store
from flows.console import Console
from flows.environment import prepare
from flows.fetch import fetch_result
from flows.outcome import described, status_of
from flows.simulate import write

if TYPE_CHECKING:
    from cmseg_core.phantom import Field
    from tasks.request import AcquisitionResult

BUCKET = "s3://cmseg-demo"


def run_demo(field: Field, workspace: Path | None, console: Console) -> int:
    """Simulate, upload, process, score and report.

    All state lies in the folder ``demo`` of the workspace. Every run adds an acquisition under a new name and leaves
    the former ones alone; stages that the same seed has computed already are found again in the store. What an
    interrupted run had uploaded is processed by the next one.

    Parameters
    ----------
    field : Field
        The simulated acquisition.
    workspace : path, optional
        By default the one of ``CMSEG_WORKSPACE``.
    console : Console

    Returns
    -------
    int
        Exit status.
    """
    home = ((workspace or Workspace().workspace).expanduser() / "demo").absolute()
    with object_store(home / "s3") as service:
        os.environ.update(service.environment())
        settings = _settings(home, service.endpoint)
        prepare(settings)
        ensure_bucket(BUCKET)
        champions = ensure_champions(default_tracking_uri(home))
        models = {"unet": champions["unet"], "sam": champions["sam"], "stage_model": champions["stage"]}
        settings = settings.model_copy(update=models)
        store = Store.open(BUCKET)
        name = _new_name(store, home)
        source = home / "simulated" / name
        with console.progress(f"simulating {len(field.cells)} cells", field.shape[0]) as advance:
            write(field, source, advance)
        results = _night(source, name, settings, console)
        return _outcome(name, results, store, home, console)


def _settings(home: Path, endpoint: str) -> Workspace:
    """Settings that lead nowhere but to the demonstration's own folder and service."""
    for variable in ("CMSEG_MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        os.environ.pop(variable, None)
    os.environ["CMSEG_WORKSPACE"] = str(home)
    return Workspace(workspace=home, store=BUCKET, s3_endpoint=endpoint, s3_region="us-east-1")


def _new_name(store: Store, home: Path) -> str:
    """A name that no former run has used."""
    taken = {*store.folders("incoming"), *store.folders("acquisitions"), *store.folders("quarantine")}
    taken |= {path.name for path in (home / "simulated").glob("*")}
    return next(name for n in range(1, len(taken) + 2) if (name := f"demo-{n}") not in taken)


def _night(source: Path, name: str, settings: Workspace, console: Console) -> list[AcquisitionResult]:
    from flows.landing import night, upload

    console.say(f"uploading {name} to {BUCKET}")
    upload(str(source), name, None, None, None, settings)
    return night(settings, PipelineConfig(), (), console)


def _outcome(name: str, results: list[AcquisitionResult], store: Store, home: Path, console: Console) -> int:
    found = [result for result in results if result.name == name]
    if not found:
        raise RuntimeError(f"the nightly flow did not take up {name}")
    (result,) = found
    if result.state == "published":
        fetch_result(store, name, home / "acquisitions")
        result = result.model_copy(update={"location": str(home / "acquisitions" / name)})
    text = described(result)
    report = Path(result.location, "report.html")
    if report.is_file():
        text += f"\n\nreport: {report}"
    console.result({**result.model_dump(mode="json"), "report": str(report) if report.is_file() else None}, text)
    return status_of(results)
