"""Putting an acquisition into the landing zone."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from cmseg_core.acquisition.reader import read_labels
from cmseg_core.errors import InputError
from cmseg_core.schema import Acquisition, VoxelSize, first_problem
from cmseg_core.storage.stages import canonical_json
from cmseg_core.storage.store import Store
from tasks.check import stages_beside
from tasks.landing import INCOMING
from tasks.source import open_stack


def submit(
    source: str,
    name: str,
    store: Store,
    *,
    voxel_size: VoxelSize | None = None,
    truth_cells: str | None = None,
    truth_organelles: str | None = None,
) -> Acquisition:
    """Upload a stack, and the truth where there is some; the acquisition exists once this returns.

    Parameters
    ----------
    source : str
        Local stack.
    name : str
        Name of the acquisition: letters, digits, ``.``, ``_`` and ``-``.
    store : Store
    voxel_size : VoxelSize, optional
        None takes what the stack states.
    truth_cells, truth_organelles : str, optional
        Local label stacks of the same shape.

    Returns
    -------
    Acquisition
        As it was written to ``acquisition.json``.

    Raises
    ------
    InputError
        Where the stack or the truth is of no use, or the name is not valid or taken. Nothing is uploaded then.
    """
    stack = open_stack(source, voxel_size)
    truth = {"cells": truth_cells, "organelles": truth_organelles}
    for path in filter(None, truth.values()):
        read_labels(path, stack.shape)
    sha256 = stack.sha256()
    stages = stages_beside(Path(source)) if any(truth.values()) else {}
    named = {str(cell): stage for cell, stage in stages.items()}
    folder = f"data-{sha256[:12]}"
    try:
        acquisition = Acquisition(
            name=name,
            source=f"{folder}/{Path(source).name}",
            sha256=sha256,
            bytes=sum(file.stat().st_size for file in stack.files) or stack.nbytes,
            voxel_size=stack.voxel_size,
            truth_cells=f"{folder}/truth-cells/{Path(truth_cells).name}" if truth_cells else None,
            truth_organelles=f"{folder}/truth-organelles/{Path(truth_organelles).name}" if truth_organelles else None,
            metadata=stack.metadata | ({"stages": named} if named else {}),
        )
    except ValidationError as error:
        mend = "use letters, digits, dots, underscores and hyphens"
        raise InputError(name, f"is not a valid name ({first_problem(error)})", mend) from error
    key = f"{INCOMING}/{name}/acquisition.json"
    if store.exists(key):
        raise InputError(name, "is taken by an acquisition that was submitted before", "choose another name")
    for path, place in ((source, acquisition.source), (truth_cells, acquisition.truth_cells),
                        (truth_organelles, acquisition.truth_organelles)):  # fmt: skip
        if path is not None and place is not None:
            _upload(store, Path(path), f"{INCOMING}/{name}/{place}")
    if not store.put_if_absent(key, canonical_json(acquisition)) and store.get(key) != canonical_json(acquisition):
        raise InputError(name, "was taken by another submission just now", "choose another name")
    return acquisition


def _upload(store: Store, path: Path, key: str) -> None:
    if path.is_dir():
        store.upload_tree(path, key)
    else:
        store.upload_file(path, key)
