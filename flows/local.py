"""One acquisition from files to files."""

from __future__ import annotations

import re
from pathlib import Path

from cmseg_core.errors import InputError
from cmseg_core.schema import PipelineConfig, VoxelSize, Workspace
from flows.console import Console
from flows.environment import prepare
from flows.labelled import is_labelled, open_labelled
from flows.outcome import described, status_of


def run_local(
    console: Console,
    *,
    source: str,
    out: Path,
    voxel_size: VoxelSize | None,
    truth_cells: Path | None,
    truth_organelles: Path | None,
    config: Path | None,
    unet: str | None,
    sam: str | None,
    stage_model: str | None,
    max_memory: float | None,
) -> int:
    """Process `source` into the folder `out`; see ``cmseg run --help``.

    Bad input is found before any heavy package is imported and before anything is written.

    Raises
    ------
    InputError
        Where the source, an option, a model or `out` cannot be used.
    """
    workspace = Workspace()
    settings = PipelineConfig.from_file(config)
    stack, truth_cells, truth_organelles = with_truth(source, truth_cells, truth_organelles)
    check_out(out)
    if not stack.startswith("s3://"):
        _check_source(Path(stack), voxel_size, [truth_cells, truth_organelles])
    prepare(workspace)

    from flows.cluster import on_cluster
    from flows.places import store_address, tracking_uri
    from flows.process_acquisition import process_acquisition
    from tasks.request import AcquisitionRequest

    store = store_address(workspace)
    with console.pipeline(f"{source} -> {out}"):
        result = on_cluster(process_acquisition, workspace.dask)(
            AcquisitionRequest(
                name=name_of(source),
                source=stack,
                voxel_size=voxel_size,
                truth_cells=_absolute(truth_cells),
                truth_organelles=_absolute(truth_organelles),
                config=settings,
                store=store.uri,
                s3_endpoint=store.endpoint,
                s3_region=store.region,
                out=out.expanduser().absolute(),
                unet=unet or workspace.unet,
                sam=sam or workspace.sam,
                stage_model=stage_model or workspace.stage_model,
                tracking_uri=tracking_uri(workspace),
                workspace=workspace.workspace,
                max_memory_gb=max_memory or workspace.max_memory_gb,
                block_edge=workspace.block_edge,
            )
        )
    console.result(result.model_dump(mode="json"), described(result))
    return status_of([result])


def name_of(source: str) -> str:
    """A name for the acquisition that `source` holds."""
    path = Path(source.rstrip("/"))
    stem = path.name.removesuffix(".gz").split(".ome.")[0]
    stem = Path(stem).stem if path.is_file() else stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:100] or "acquisition"


def check_out(out: Path) -> None:
    """Raise `InputError` where `out` cannot be written or holds what no run of cmseg left; leaves no trace."""
    from flows.simulate import check_new_folder

    if not (out / "manifest.json").is_file():
        check_new_folder(out.expanduser().absolute())


def with_truth(
    source: str, truth_cells: Path | None, truth_organelles: Path | None
) -> tuple[str, Path | None, Path | None]:
    """The stack of a source, with the truth of a folder that ``cmseg phantom`` wrote unless another one is given."""
    if source.startswith("s3://"):
        return source, truth_cells, truth_organelles
    folder = Path(source).expanduser()
    if not is_labelled(folder):
        return str(folder.absolute()), truth_cells, truth_organelles
    found = open_labelled(folder)
    return str(found.stack.absolute()), truth_cells or found.cells, truth_organelles or found.organelles


def _check_source(stack: Path, voxel_size: VoxelSize | None, truth: list[Path | None]) -> None:
    """Read the headers: nearly all that can be wrong with a stack shows in them."""
    from cmseg_core.acquisition.reader import open_source

    open_source(stack, voxel_size)
    for path in truth:
        if path is not None and not path.exists():
            raise InputError(path, "does not exist", "check the path of the truth")


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser().absolute())
