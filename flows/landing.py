"""The landing zone from the command line: submit, the night, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmseg_core.evaluation.tables import format_table
from cmseg_core.schema import Acquisition, PipelineConfig, VoxelSize, Workspace
from flows.console import DONE, QUARANTINED, Console
from flows.environment import prepare
from flows.local import with_truth
from flows.outcome import described, status_of

if TYPE_CHECKING:
    from tasks.request import AcquisitionResult


_BECAME = {
    "waiting": "waits for the next night",
    "quarantined": "was submitted before, and is quarantined: `cmseg status {name}` says why",
}


def submit_local(
    console: Console,
    source: str,
    name: str,
    voxel_size: VoxelSize | None,
    truth_cells: Path | None,
    truth_organelles: Path | None,
) -> int:
    """Upload an acquisition as ``cmseg submit`` is asked to."""
    workspace = Workspace()
    acquisition = upload(source, name, voxel_size, truth_cells, truth_organelles, workspace)
    from flows.places import store_address
    from tasks.landing import state_of

    state, _ = state_of(store_address(workspace).open(), acquisition.name)
    told = _BECAME.get(state, state).format(name=acquisition.name)
    zyx = " x ".join(f"{edge:g}" for edge in acquisition.voxel_size.zyx)
    text = f"{acquisition.name}: {acquisition.bytes / 1e6:.1f} MB, voxels of {zyx} nm, {told}"
    console.result(acquisition.model_dump(mode="json"), text)
    return DONE


def upload(
    source: str,
    name: str,
    voxel_size: VoxelSize | None,
    truth_cells: Path | None,
    truth_organelles: Path | None,
    workspace: Workspace,
) -> Acquisition:
    """Upload a stack, with the truth of a folder that ``cmseg phantom`` wrote unless another one is given.

    Raises
    ------
    InputError
        Where the stack, its truth, its name or the store cannot be used.
    """
    prepare(workspace)
    from flows.places import store_address
    from flows.submit import submit

    stack, cells, organelles = with_truth(source, truth_cells, truth_organelles)
    return submit(
        stack,
        name,
        store_address(workspace).open(),
        voxel_size=voxel_size,
        truth_cells=str(cells) if cells else None,
        truth_organelles=str(organelles) if organelles else None,
    )


def run_night(console: Console, config: Path | None, names: Sequence[str]) -> int:
    """Run the nightly flow as ``cmseg nightly`` is asked to."""
    results = night(Workspace(), PipelineConfig.from_file(config), names, console)
    document = {"acquisitions": [result.model_dump(mode="json") for result in results]}
    console.result(document, "\n\n".join(described(result) for result in results) or "nothing new")
    return status_of(results)


def night(
    workspace: Workspace, config: PipelineConfig, names: Sequence[str], console: Console
) -> list[AcquisitionResult]:
    """Process every new acquisition of a store, or those that are named; some may wait for the next night."""
    prepare(workspace)
    from flows.nightly import Unfinished, nightly

    with console.pipeline("nightly"):
        try:
            return nightly(config, workspace, names or None)
        except Unfinished as error:
            return error.results


def show_status(console: Console, name: str | None, *, storage: bool, verify: bool) -> int:
    """Print the services of the workspace, the state of one acquisition or of all, what takes the room, and what
    differs from its checksum; in the last case the exit status is 3."""
    workspace = Workspace()
    prepare(workspace)
    from flows.places import store_address
    from flows.services import service_states
    from flows.status import acquisition_states, damage, known, storage_use

    store = store_address(workspace).open()
    states = acquisition_states(store, name)
    services = service_states(workspace) if name is None else []
    document: dict[str, Any] = {"acquisitions": states, "services": services}
    rows = [(s["name"], s["state"], s["version"], s["reason"]) for s in states]
    tables = [format_table(("name", "state", "version", "reason"), rows) if rows else "nothing was submitted yet"]
    if services:
        running = [(s["name"], s["state"], s["restarts"], f"{s['bytes'] / 1e6:.0f} MB") for s in services]
        tables.insert(0, format_table(("service", "state", "restarts", "memory"), running))
    if storage:
        used = document["storage"] = storage_use(store)
        taken = [
            (
                u["folder"],
                u["objects"],
                _megabytes(u["bytes"]),
                _megabytes(u["former"]),
                "expires" if u["expires"] else "",
            )
            for u in used
        ]
        head = ("folder", "objects", "size", "former versions", "")
        tables.append(format_table(head, taken) if taken else "the store is empty")
    damaged: list[str] = []
    if verify:
        for one in known(store, name):
            console.say(f"reading {one}")
            damaged += damage(store, one)
        document["damaged"] = damaged
        tables.append("\n".join(damaged) or "everything is as its checksums say")
    console.result(document, "\n\n".join(tables))
    return QUARANTINED if damaged else DONE


def _megabytes(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1e6:.1f} MB"
