"""The night: every new acquisition is processed, and one that fails is set aside without harm to the others."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from prefect import flow
from prefect.events import emit_event

from cmseg_core.errors import InputError
from cmseg_core.schema import PipelineConfig, Workspace
from cmseg_core.storage.stages import is_damage
from cmseg_core.storage.store import Store
from cmseg_core.tracking.registry import Role, pinned_reference, resolve_model
from flows.cluster import on_cluster
from flows.environment import prepare
from flows.morning import show, show_worst, tell_drift
from flows.places import store_address, tracking_uri
from flows.process_acquisition import process_acquisition
from flows.progress import Progress, resource_of
from tasks.claims import LEASE_SECONDS, Claim, abandoned, claim, forget
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
from tasks.request import STAGE_RULE, AcquisitionRequest, AcquisitionResult
from tasks.slots import check_limit
from tasks.stage import may_pass
from tasks.truth import stages_of

log = logging.getLogger("cmseg.flows")

ATTEMPTS = 2
"""A fault that is not the input's gets a second chance: what was computed before it is not computed again."""
PAUSES = (60.0, 600.0)
"""Seconds before the night takes up again what a failing disk or service made wait."""
DONE = ("published", "quarantined")
MOST_DEATHS = 3
"""An acquisition over which so many workers died is set aside, or it would end every night."""


class Unfinished(RuntimeError):
    """A night that ended with something left, because a disk or a service failed.

    Parameters
    ----------
    results : sequence of AcquisitionResult
        Of everything that the night took up.
    """

    def __init__(self, results: Sequence[AcquisitionResult]) -> None:
        self.results = list(results)
        left = [f"{result.name} ({result.reason})" for result in self.results if result.state == "waiting"]
        super().__init__(f"waits for the next night: {', '.join(left)}")

    def __reduce__(self) -> tuple[type, tuple[list[AcquisitionResult]]]:
        return type(self), (self.results,)


def _tonight() -> str:
    """A run is named after the day on which it begins."""
    return f"night-{datetime.now():%Y-%m-%d}"


@flow(name="nightly", flow_run_name=_tonight, persist_result=False)
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
    Unfinished
        Where acquisitions were left, because a disk or a service failed until the end.
    """
    config = config or PipelineConfig()
    workspace = workspace or Workspace()
    prepare(workspace)
    store = store_address(workspace).open()
    results: dict[str, AcquisitionResult] = {}
    progress = Progress("the night", key="night-progress")
    pinned: Workspace | None = None
    for pause in (*PAUSES, None):
        try:
            check_limit(workspace.network_limit)
            pinned = pinned or _pinned(workspace, config)
            _round(store, names, config, pinned, results, progress)
            if not any(result.state == "waiting" for result in results.values()):
                break
        except Exception as error:
            if pause is None or not may_pass(error) or isinstance(error, InputError):
                raise
            log.warning("the night is held up: %s", error)
        if pause is not None:
            time.sleep(pause * random.uniform(0.8, 1.2))
    ended = list(results.values())
    progress.reach(1, f"{len(ended)} acquisitions")
    show(ended)
    show_worst(ended, store)
    tell_drift(ended, store, pinned or workspace)
    if any(result.state == "waiting" for result in ended):
        raise Unfinished(ended)
    return ended


def _pinned(workspace: Workspace, config: PipelineConfig) -> Workspace:
    """The workspace with the models that are champions now: a promotion during the night is for the next one.

    A reference that leads nowhere is refused here, where no acquisition is blamed for it.
    """
    roles: dict[str, Role] = {"unet": "unet", "stage_model": "stage"}
    if config.foreground.method == "sam":
        roles["sam"] = "sam"
    uri = tracking_uri(workspace)
    models = {field: pinned_reference(getattr(workspace, field), role, uri) for field, role in roles.items()}
    for field, role in roles.items():
        if models[field] != STAGE_RULE:
            resolve_model(models[field], role, uri, workspace.workspace / "models")
    return workspace.model_copy(update=models)


def _round(
    store: Store,
    names: Sequence[str] | None,
    config: PipelineConfig,
    workspace: Workspace,
    results: dict[str, AcquisitionResult],
    progress: Progress,
) -> None:
    """Process what is to be done and has no final result yet; `results` grows."""
    for name in [name for name, result in results.items() if result.state == "waiting"]:
        del results[name]
    chosen = waiting(store) if names is None else _named(store, names)
    over = DONE if names is None else DONE[:1]
    elsewhere: list[str] = []
    total = len({*results, *chosen})
    for patience, some in ((0.0, chosen), (LEASE_SECONDS, elsewhere)):
        for name in some:
            if name in results:
                continue
            progress.reach(len(results) / total, f"{name}, {len(results)} of {total} are done")
            try:
                mine = claim(store, name, patience=patience)
                if mine is not None and (result := _process(mine, config, workspace, over)) is not None:
                    results[name] = result
            except Exception as error:
                if not may_pass(error):
                    raise
                log.warning("%s waits: %s", name, error)
                place = store.uri_of(f"{INCOMING}/{name}")
                results[name] = AcquisitionResult(name=name, state="waiting", reason=str(error), location=place)
                continue
            if mine is None and not patience:
                elsewhere.append(name)
    for name, latest in abandoned(store).items():  # by workers that died as they had just finished
        if state_of(store, name, claimed=False)[0] in DONE:
            forget(store, name, latest)


def _named(store: Store, names: Sequence[str]) -> list[str]:
    for name in sorted(set(names) - set(submitted(store))):
        raise InputError(name, "was never submitted", "see `cmseg status` for the names that were")
    return [name for name in sorted(set(names)) if state_of(store, name)[0] != "published"]


def _process(
    mine: Claim, config: PipelineConfig, workspace: Workspace, over: Sequence[str]
) -> AcquisitionResult | None:
    """Process one submission, unless another worker was faster and it is `over`."""
    with mine.kept():
        if state_of(mine.store, mine.name, claimed=False)[0] in over:
            return None
        if mine.attempt > MOST_DEATHS:
            reason = f"{MOST_DEATHS} workers were killed while they had it"
            mend = "see whether it needs more memory than there is; then `cmseg nightly` with its name"
            return _set_aside(mine.store, mine.name, reason, mend, "fault")
        return _outcome(mine.name, config, workspace, mine.store)


def _outcome(name: str, config: PipelineConfig, workspace: Workspace, store: Store) -> AcquisitionResult:
    """Process one submission; what is wrong with it becomes a quarantine.

    Raises
    ------
    Exception
        Where a disk or a service failed, see :func:`tasks.stage.may_pass`.
    """
    scratch = workspace.workspace / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=scratch, prefix=f"{name}-incoming-"))
    try:
        return _attempt(name, config, workspace, store, folder)
    except Exception as error:
        if may_pass(error):
            raise
        return _set_aside(store, name, *_why(name, error, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _why(name: str, error: Exception, folder: Path) -> tuple[str, str, Kind]:
    """Reason, mend and kind of a quarantine; paths in `folder`, gone by then, are told as the submission's."""
    if isinstance(error, InputError):
        return f"{error.subject}: {error.reason}".replace(f"{folder}/", ""), error.mend, "input"
    log.error("%s failed", name, exc_info=error)
    if is_damage(error):
        mend = (
            "see whether a disk fails; remove work/ from the store, and try it again with `cmseg nightly` and its name"
        )
        return "what an earlier step left in the store was altered since, but can be computed again", mend, "fault"
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return reason, "see the log of the run; then `cmseg nightly` with its name", "fault"


def _attempt(name: str, config: PipelineConfig, workspace: Workspace, store: Store, folder: Path) -> AcquisitionResult:
    process = on_cluster(process_acquisition, workspace.dask)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return process(_request(name, config, workspace, store, folder))
        except InputError:
            raise
        except Exception:
            if attempt == ATTEMPTS:
                raise
            log.warning("%s failed and is tried once more", name, exc_info=True)
    raise AssertionError("the loop returns or raises")


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
        shadow=workspace.shadow,
        shadow_cells=workspace.shadow_cells,
        network_limit=workspace.network_limit,
    )


def _set_aside(store: Store, name: str, reason: str, mend: str, kind: Kind) -> AcquisitionResult:
    location = quarantine(store, name, reason, mend, kind)
    emit_event(
        "cmseg.acquisition.quarantined",
        resource=resource_of(name),
        payload={"reason": reason, "mend": mend, "kind": kind},
    )
    return AcquisitionResult(name=name, state="quarantined", reason=reason, location=location)
