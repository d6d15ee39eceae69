"""Putting an acquisition into the landing zone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.schema import Acquisition, VoxelSize, first_problem
from cmseg_core.storage.stages import canonical_json
from cmseg_core.storage.store import Store
from tasks.landing import INCOMING, versioned, versions_of
from tasks.source import open_stack
from tasks.truth import labels_sha256, stages_beside


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

    What was submitted under this name before stays as it is: the same once more changes nothing, and anything else
    becomes the next version of the name.

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
        As it stands in ``acquisition.json``; its name ends in ``@2`` where it is the second version, and so on.

    Raises
    ------
    InputError
        Where the stack or the truth is of no use, or the name is not valid. Nothing is uploaded then.
    """
    stack = open_stack(source, voxel_size)
    truth = {"cells": truth_cells, "organelles": truth_organelles}
    labels = {role: labels_sha256(path, stack.shape) for role, path in truth.items() if path}
    sha256 = stack.sha256()
    content = hashlib.sha256(canonical_json({"stack": sha256, **labels})).hexdigest() if labels else sha256
    stages = stages_beside(Path(source)) if labels else {}
    named = {str(cell): stage for cell, stage in stages.items()}
    folder = f"data-{content[:12]}"
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
    if "@" in name:
        raise InputError(name, "names a version", "leave out what follows the @; versions are counted by themselves")
    before = versions_of(store, name)
    for former in before:
        same = acquisition.model_copy(update={"name": former})
        if store.get(f"{INCOMING}/{former}/acquisition.json") == canonical_json(same):
            return same
    number = versioned(before[-1])[1] + 1 if before else 1
    acquisition = acquisition.model_copy(update={"name": name if number == 1 else f"{name}@{number}"})
    place = f"{INCOMING}/{acquisition.name}"
    for path, at in ((source, acquisition.source), (truth_cells, acquisition.truth_cells),
                     (truth_organelles, acquisition.truth_organelles)):  # fmt: skip
        if path is not None and at is not None:
            _upload(store, Path(path), f"{place}/{at}")
    key = f"{place}/acquisition.json"
    if not store.put_if_absent(key, canonical_json(acquisition)) and store.get(key) != canonical_json(acquisition):
        raise InputError(name, "was taken by another submission just now", "submit it once more, as the next version")
    return acquisition


def _upload(store: Store, path: Path, key: str) -> None:
    if path.is_dir():
        store.upload_tree(path, key)
    else:
        store.upload_file(path, key)
