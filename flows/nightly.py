"""The night: every new acquisition is processed, and one that fails is set aside without harm to the others."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from prefect import Flow, flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event

from cmseg_core.errors import InputError
from cmseg_core.schema import PipelineConfig, Workspace
from cmseg_core.storage.store import Store
from flows.cluster import on_cluster
from flows.environment import prepare
from flows.places import store_address, tracking_uri
from flows.process_acquisition import process_acquisition
from tasks.check import stages_of
from tasks.claims import LEASE_SECONDS, Claim, claim
from tasks.landing import (
    INCOMING,
    Kind,
    fetch_submission,
    quarantine,
    read_submission,
    state_of,
    submitted,
    waiting,
)
from tasks.request import AcquisitionRequest, AcquisitionResult

log = logging.getLogger("cmseg.flows")

ATTEMPTS = 2
"""A fault that is not the input's gets a second chance: what was computed before it is not computed again."""
DONE = ("published", "quarantined")
MOST_DEATHS = 3
"""An acquisition over which so many workers died is set aside, or it would end every night."""


def _tonight() -> str:
    """A run is named after the day on which it begins."""
    return f"night-{datetime.now():%Y-%m-%d}"


@flow(name="nightly", flow_run_name=_tonight, persist_result=False, validate_parameters=False)
def nightly(
    config: PipelineConfig | None = None,
    workspace: Workspace | None = None,
    names: Sequence[str] | None = None,
) -> list[AcquisitionResult]:
    """Process every acquisition that was submitted and neither published nor quarantined yet.

    Any number of workers may do so at once: each acquisition is processed by one of them, and by another one where that
    one dies.

    Parameters
    ----------
    config : PipelineConfig, optional
        By default that of the environment.
    workspace : Workspace, optional
        By default that of the environment.
    names : sequence of str, optional
        Only these, also where they were quarantined before; what is published already is left alone.

    Returns
    -------
    list of AcquisitionResult
        Of what this worker processed. An acquisition that failed is quarantined, with its reason in
        ``quarantine/<name>/reason.json``.

    Raises
    ------
    InputError
        Where a name was never submitted, or the store cannot be used.
    """
    config = config or PipelineConfig()
    workspace = workspace or Workspace()
    prepare(workspace)
    store = store_address(workspace).open()
    chosen = waiting(store) if names is None else _named(store, names)
    results, elsewhere = [], []
    for patience, some in ((0.0, chosen), (LEASE_SECONDS, elsewhere)):
        for name in some:
            mine = claim(store, name, patience=patience)
            if mine is not None:
                results += _process(mine, config, workspace, over=DONE if names is None else DONE[:1])
            elif not patience:
                elsewhere.append(name)
    _show(results)
    return results


def _named(store: Store, names: Sequence[str]) -> list[str]:
    for name in sorted(set(names) - set(submitted(store))):
        raise InputError(name, "was never submitted", "see `cmseg status` for the names that were")
    return [name for name in sorted(set(names)) if state_of(store, name)[0] != "published"]


def _process(mine: Claim, config: PipelineConfig, workspace: Workspace, over: Sequence[str]) -> list[AcquisitionResult]:
    """Process one submission, unless another worker was faster and it is `over`."""
    with mine.kept():
        if state_of(mine.store, mine.name, claimed=False)[0] in over:
            return []
        if mine.attempt > MOST_DEATHS:
            reason = f"{MOST_DEATHS} workers were killed while they had it"
            mend = "see whether it needs more memory than there is; then `cmseg nightly` with its name"
            return [_set_aside(mine.store, mine.name, reason, mend, "fault")]
        return [_outcome(mine.name, config, workspace, mine.store)]


def _outcome(name: str, config: PipelineConfig, workspace: Workspace, store: Store) -> AcquisitionResult:
    """Process one submission; whatever goes wrong with it becomes a quarantine."""
    scratch = workspace.workspace / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=scratch, prefix=f"{name}-incoming-"))
    try:
        request = _request(name, config, workspace, store, folder)
        return _attempt(request, on_cluster(process_acquisition, workspace.dask))
    except InputError as error:
        reason = f"{error.subject}: {error.reason}".replace(f"{folder}/", "")
        return _set_aside(store, name, reason, error.mend, "input")
    except Exception as error:
        log.exception("%s failed", name)
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return _set_aside(store, name, reason, "see the log of the run; then `cmseg nightly` with its name", "fault")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _request(name: str, config: PipelineConfig, workspace: Workspace, store: Store, folder: Path) -> AcquisitionRequest:
    acquisition = read_submission(store, name)
    fetch_submission(store, name, folder)
    return AcquisitionRequest(
        name=name,
        source=str(folder / acquisition.source),
        sha256=acquisition.sha256,
        origin=f"{INCOMING}/{name}/{acquisition.source}",
        voxel_size=acquisition.voxel_size,
        truth_cells=acquisition.truth_cells and str(folder / acquisition.truth_cells),
        truth_organelles=acquisition.truth_organelles and str(folder / acquisition.truth_organelles),
        stages=stages_of({"metadata": acquisition.metadata}),
        config=config,
        store=store.uri,
        s3_endpoint=store.endpoint,
        s3_region=store.region,
        unet=workspace.unet,
        sam=workspace.sam,
        stage_model=workspace.stage_model,
        tracking_uri=tracking_uri(workspace),
        workspace=workspace.workspace,
        max_memory_gb=workspace.max_memory_gb,
        block_edge=workspace.block_edge,
    )


def _attempt(request: AcquisitionRequest, process: Flow[[AcquisitionRequest], AcquisitionResult]) -> AcquisitionResult:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return process(request)
        except InputError:
            raise
        except Exception:
            if attempt == ATTEMPTS:
                raise
            log.warning("%s failed and is tried once more", request.name, exc_info=True)
    raise AssertionError("the loop returns or raises")


def _set_aside(store: Store, name: str, reason: str, mend: str, kind: Kind) -> AcquisitionResult:
    location = quarantine(store, name, reason, mend, kind)
    emit_event(
        "cmseg.acquisition.quarantined",
        resource={"prefect.resource.id": f"cmseg.acquisition.{name}", "prefect.resource.name": name},
        payload={"reason": reason, "mend": mend, "kind": kind},
    )
    return AcquisitionResult(name=name, state="quarantined", reason=reason, location=location)


def _show(results: Sequence[AcquisitionResult]) -> None:
    """Leave the night's table, and a link to every report, where Prefect shows them."""
    table = [
        {
            "acquisition": result.name,
            "state": result.state,
            "cells": result.cells,
            "cells quarantined": len(result.quarantined_cells),
            "reason": result.reason or "",
            "location": result.location,
        }
        for result in results
    ]
    create_table_artifact(key="night", table=table, description="What became of every new acquisition")
    for result in results:
        if result.state == "published":
            key = "report-" + re.sub(r"[^a-z0-9]+", "-", result.name.lower()).strip("-")
            create_markdown_artifact(key=key, markdown=f"[Report of {result.name}]({result.location}/report.html)")
