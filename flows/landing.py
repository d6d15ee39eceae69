"""The landing zone from the command line: submit, the night, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmseg_core.evaluation.tables import format_table
from cmseg_core.schema import Acquisition, PipelineConfig, VoxelSize, Workspace
from flows.console import DONE, Console
from flows.environment import prepare
from flows.local import with_truth
from flows.outcome import described, status_of

if TYPE_CHECKING:
    from tasks.request import AcquisitionResult


def submit_local(
    console: Console,
    source: str,
    name: str,
    voxel_size: VoxelSize | None,
    truth_cells: Path | None,
    truth_organelles: Path | None,
) -> int:
    """Upload an acquisition as ``cmseg submit`` is asked to."""
    acquisition = upload(source, name, voxel_size, truth_cells, truth_organelles, Workspace())
    zyx = " x ".join(f"{edge:g}" for edge in acquisition.voxel_size.zyx)
    text = f"{acquisition.name}: {acquisition.bytes / 1e6:.1f} MB, voxels of {zyx} nm, waits for the next night"
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
    """Process every new acquisition of a workspace's store, or those that are named."""
    prepare(workspace)
    from flows.nightly import nightly

    with console.pipeline("nightly"):
        return nightly(config, workspace, names or None)


def show_status(console: Console, name: str | None) -> int:
    """Print the state of one acquisition, or of all."""
    workspace = Workspace()
    prepare(workspace)
    from flows.places import store_address
    from flows.status import acquisition_states

    states = acquisition_states(store_address(workspace).open(), name)
    rows = [(s["name"], s["state"], s["version"], s["reason"]) for s in states]
    table = format_table(("name", "state", "version", "reason"), rows) if rows else "nothing was submitted yet"
    console.result({"acquisitions": states}, table)
    return DONE
