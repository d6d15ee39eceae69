"""Everything that can be refused before anything is computed or written."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import cmseg_core
from cmseg_core.errors import InputError
from cmseg_core.schema import Acquisition, Frozen, Stage
from cmseg_core.storage.stages import stage_key
from cmseg_core.tracking.registry import ResolvedModel, Role
from tasks.memory import plan_blocks
from tasks.models import resolve_models
from tasks.request import AcquisitionRequest
from tasks.source import open_stack
from tasks.truth import labels_sha256, stages_beside

PACKAGES = (
    "numpy",
    "scipy",
    "opencv-python-headless",
    "numba",
    "edt",
    "connected-components-3d",
    "keras",
    "torch",
    "segment-anything",
    "zarr",
    "trimesh",
)
"""Those whose version can change a result; ``manifest.json`` lists them."""


class Checked(Frozen):
    """A request that passed, with what the check learned.

    Attributes
    ----------
    acquisition : Acquisition
    shape : tuple of int
        Sections, rows and columns.
    dtype : str
    models : dict
        Role to model.
    truth_sha256 : dict of str to str
        Hash of each truth stack's labels.
    stages : dict of int to int
        Cell of the truth to its stage.
    run_key : str
        Hash of all that decides the result.
    block_edge : int
        Voxels of the working grid along each side of the blocks in which cells are told apart; decides nothing but the
        memory that is needed.
    """

    acquisition: Acquisition
    shape: tuple[int, int, int]
    dtype: str
    models: dict[Role, ResolvedModel]
    truth_sha256: dict[str, str]
    stages: dict[int, Stage]
    run_key: str
    block_edge: int


def check(request: AcquisitionRequest) -> Checked:
    """Refuse a request that cannot succeed; nothing is written.

    Parameters
    ----------
    request : AcquisitionRequest
        Its source and truth are at hand.

    Raises
    ------
    InputError
        For a source or truth that cannot be read, a model that is not there, or a field that would not fit into
        memory.
    """
    stack = open_stack(request.source, request.voxel_size)
    block_edge = plan_blocks(request, stack.shape, stack.dtype, stack.voxel_size)
    sha256 = stack.sha256()
    if request.sha256 is not None and sha256 != request.sha256:
        raise InputError(acquired_as(request), "differs from what was submitted", "submit it anew")
    truth = {"truth_cells": request.truth_cells, "truth_organelles": request.truth_organelles}
    truth_sha256 = {role: labels_sha256(path, stack.shape) for role, path in truth.items() if path}
    models = resolve_models(request)
    acquisition = Acquisition(
        name=request.name,
        source=acquired_as(request),
        sha256=sha256,
        bytes=sum(file.stat().st_size for file in stack.files) or stack.nbytes,
        voxel_size=stack.voxel_size,
        truth_cells=Path(request.truth_cells).name if request.truth_cells else None,
        truth_organelles=Path(request.truth_organelles).name if request.truth_organelles else None,
        metadata=stack.metadata,
    )
    stages = request.stages or (stages_beside(Path(request.source)) if truth_sha256 else {})
    inputs = {"source": acquisition.sha256, **{role: model.sha256 for role, model in models.items()}, **truth_sha256}
    settings = {
        "name": request.name,
        "voxel_size": stack.voxel_size,
        "config": request.config.model_dump(mode="json"),
        "stages": {str(cell): stage for cell, stage in stages.items()},
    }
    return Checked(
        acquisition=acquisition,
        shape=stack.shape,
        dtype=stack.dtype.name,
        models=models,
        truth_sha256=truth_sha256,
        stages=stages,
        run_key=stage_key("run", inputs, settings, cmseg_core.__version__),
        block_edge=block_edge,
    )


def acquired_as(request: AcquisitionRequest) -> str:
    """The source as people know it, wherever it lies at the moment."""
    return request.origin or request.source


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what computes."""
    found = {name: version(name) for name in PACKAGES}
    return {"cmseg": cmseg_core.__version__, "python": sys.version.split()[0], **found}
