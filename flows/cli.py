"""The ``cmseg`` command.

Heavy packages (TensorFlow, PyTorch, Prefect, MLflow) are imported inside the commands that need them, so that help and
mistakes are answered at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from cyclopts import App, Parameter

from flows import cli_learning
from flows.console import DONE, Console, exit_status, wants
from flows.joined import join
from flows.options import (
    Cells,
    Hard,
    Json,
    Seed,
    Settings,
    Source,
    StatedVoxelSize,
    Top,
    TruthCells,
    TruthOrganelles,
    VoxelSizeOption,
    stated,
    to_voxel_size,
)
from flows.quiet import QuietImport

app = App(
    name="cmseg",
    help="""Unattended segmentation of cells and organelles in 3D electron microscopy.

    Sizes are nanometres, in the order z y x. Exit status: 0 done; 2 bad usage or bad input; 3 finished, with some
    items quarantined, or a challenger refused; 1 a fault of cmseg. With --debug (or CMSEG_DEBUG=1) any command prints
    tracebacks.""",
    version=lambda: version("cmseg"),
    default_parameter=Parameter(negative=()),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command(cli_learning.dataset)
app.command(cli_learning.train)
app.command(cli_learning.evaluate)
app.command(cli_learning.models)


def main() -> None:
    """Run the command that the arguments name."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(tokens: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    debug = wants(tokens, "--debug") or os.environ.get("CMSEG_DEBUG", "") not in ("", "0")
    if debug:
        os.environ["CMSEG_DEBUG"] = "1"
    kept = [token for token in tokens if token != "--debug"]
    sys.meta_path.insert(0, QuietImport())

    def command() -> int:
        join(kept)
        return app(kept, exit_on_error=False, print_error=False)

    return exit_status(command, debug=debug)


@app.command
def demo(
    *,
    workspace: Path | None = None,
    cells: Cells = 14,
    seed: Seed = 2025,
    voxel_size: VoxelSizeOption = (30.0, 20.0, 20.0),
    hard: Hard = False,
    json: Json = False,
) -> int:
    """Show the whole product on a simulated acquisition: S3 on loopback, nightly flow, scores, report.

    Parameters
    ----------
    workspace
        Folder of its state; by default the folder demo of CMSEG_WORKSPACE. Each run adds an acquisition to it.
    """
    from flows.demo import run_demo
    from flows.simulate import simulate

    console = Console(json)
    field = simulate(cells=cells, shape=None, voxel_size=to_voxel_size(voxel_size), seed=seed, hard=hard, defects=[])
    return run_demo(field, workspace, console)


@app.command
def run(
    source: Source,
    out: Path,
    /,
    *,
    voxel_size: StatedVoxelSize = None,
    truth_cells: TruthCells = None,
    truth_organelles: TruthOrganelles = None,
    config: Settings = None,
    unet: str | None = None,
    sam: str | None = None,
    stage_model: str | None = None,
    max_memory: float | None = None,
    json: Json = False,
) -> int:
    """Segment one acquisition, from files to files; needs no server.

    Parameters
    ----------
    out
        New folder for the result. The same run once more finds it done; another run's result is never touched.
    unet
        Model for organelles: champion (the default), packaged, a file, models:/name/version or models:/name@alias.
    sam
        Model for cells: champion (the default), packaged, a file, models:/name/version or models:/name@alias.
    stage_model
        Classifier of the cell-cycle stage: champion (the default), packaged, a file, models:/name/version or
        models:/name@alias; or rule.
    max_memory
        Gigabytes that may be used.
    """
    from flows.local import run_local

    return run_local(
        Console(json),
        source=source,
        out=out,
        voxel_size=stated(voxel_size),
        truth_cells=truth_cells,
        truth_organelles=truth_organelles,
        config=config,
        unet=unet,
        sam=sam,
        stage_model=stage_model,
        max_memory=max_memory,
    )


@app.command
def phantom(
    out: Path,
    /,
    *,
    cells: Cells = 14,
    shape: tuple[int, int, int] | None = None,
    voxel_size: VoxelSizeOption = (30.0, 20.0, 20.0),
    seed: Seed = 0,
    hard: Hard = False,
    defect: tuple[str, ...] = (),
    json: Json = False,
) -> int:
    """Simulate an acquisition with its truth: stack.tif, cells.tif, organelles.tif, acquisition.json.

    Parameters
    ----------
    out
        New folder.
    shape
        Sections, rows, columns; by default a field that the cells crowd.
    defect
        A defect of acquisition, any number of times: noise, curtaining, charging, drift, jitter, missing.
    """
    from flows.simulate import check_new_folder, simulate, write

    console = Console(json)
    check_new_folder(out.absolute())
    field = simulate(
        cells=cells, shape=shape, voxel_size=to_voxel_size(voxel_size), seed=seed, hard=hard, defects=list(defect)
    )
    with console.progress(f"rendering {field.shape[0]} sections", field.shape[0]) as advance:
        write(field, out, advance)
    facts = {"folder": str(out.absolute()), "shape": list(field.shape), "cells": len(field.cells)}
    console.result(facts, f"{out}: {cells} cells in {' x '.join(map(str, field.shape))} voxels")
    return DONE


@app.command
def submit(
    source: Source,
    /,
    *,
    name: str,
    voxel_size: StatedVoxelSize = None,
    truth_cells: TruthCells = None,
    truth_organelles: TruthOrganelles = None,
    json: Json = False,
) -> int:
    """Upload an acquisition to the landing zone of the store, from where the next night takes it.

    Parameters
    ----------
    name
        Letters, digits, dots, _ and -. Where something else was submitted under it before, this is its next version.
    """
    from flows.landing import submit_local

    size = stated(voxel_size)
    return submit_local(Console(json), source, name, size, truth_cells, truth_organelles)


@app.command
def nightly(*names: str, config: Settings = None, json: Json = False) -> int:
    """Process every new acquisition of the store; one that fails is quarantined and does not stop the others.

    Parameters
    ----------
    names
        Only these, also where they were quarantined before.
    """
    from flows.landing import run_night

    return run_night(Console(json), config, names)


@app.command
def status(name: str | None = None, /, *, storage: bool = False, verify: bool = False, json: Json = False) -> int:
    """Tell what ran, what waits, and what was quarantined and why; with `cmseg up`, the state of the services too.

    Parameters
    ----------
    name
        One acquisition; by default all of them.
    storage
        Tell what takes the room in the store, too.
    verify
        Read all raw data and all results, and name what differs from its checksum.
    """
    from flows.landing import show_status

    return show_status(Console(json), name, storage=storage, verify=verify)


@app.command
def review(
    name: str | None = None,
    /,
    *,
    top: Top = 20,
    to: Path | None = None,
    json: Json = False,
) -> int:
    """List the published cells most in need of a look.

    Parameters
    ----------
    name
        Of one acquisition; by default of all.
    to
        Folder that receives their files, for correction; what lies there already is left alone.
    """
    from flows.review import show_review

    return show_review(Console(json), name, top, to)


@app.command
def fetch(name: str, /, *, to: Path = Path(), only: tuple[str, ...] = (), json: Json = False) -> int:
    """Bring the published result of an acquisition to this machine, each file compared with its checksum.

    Parameters
    ----------
    name
        Of the acquisition; `name@2` for its second version.
    to
        Folder that receives the folder of the result; nothing in it is overwritten.
    only
        A file of the result such as `report.html`, or a folder such as `cells/3`; may be given more than once.
    """
    from flows.fetch import show_fetch

    return show_fetch(Console(json), name, to, only)


@app.command
def up(*, json: Json = False) -> int:
    """Start the services of a laboratory on this machine: S3, PostgreSQL, MLflow, Prefect and a worker.

    They stay up until `cmseg down`; what they keep lies in the workspace. The night is scheduled, and every other
    command uses them.
    """
    from flows.services import up as start

    return start(Console(json))


@app.command
def down(*, now: bool = False, json: Json = False) -> int:
    """End the services of `cmseg up`, once the flows that run have ended.

    Parameters
    ----------
    now
        Break running flows off; they go on with the next `cmseg up`, and what they had computed is kept.
    """
    from flows.services import down as end

    return end(Console(json), now=now)


@app.command
def doctor(*, json: Json = False) -> int:
    """Check what works here and what does not: packages, memory, disk, models, GPU, services."""
    from flows.doctor import examine

    return examine(Console(json))
