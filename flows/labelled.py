"""Acquisitions on disk with their truth, as ``cmseg phantom`` writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.schema import Frozen, PreprocessConfig, Stage, VoxelSize, first_problem
from cmseg_core.storage.manifest import file_sha256
from cmseg_core.storage.stages import canonical_json

FACTS = "acquisition.json"
STACK = "stack.tif"
_LAYOUT = f"give a folder with {STACK}, cells.tif, organelles.tif and {FACTS}, or a folder of such folders"


class LabelledAcquisition(Frozen):
    """A folder with a stack and its truth.

    Attributes
    ----------
    name : str
    stack : path
    cells, organelles : path, optional
        Label stacks, where the folder has them.
    voxel_size : VoxelSize
    stages : dict of int to int
        Cell id to cell-cycle stage, where known.
    """

    name: str
    stack: Path
    cells: Path | None
    organelles: Path | None
    voxel_size: VoxelSize
    stages: dict[int, Stage]


def is_labelled(folder: Path) -> bool:
    """Whether a folder is laid out as ``cmseg phantom`` does it."""
    return (folder / FACTS).is_file() and (folder / STACK).is_file()


def open_labelled(folder: Path) -> LabelledAcquisition:
    """Read what ``acquisition.json`` says; no voxel is read.

    Raises
    ------
    InputError
        Where it cannot be read or does not state a voxel size.
    """
    path = folder / FACTS
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        truth = {kind: folder / name for kind, name in (facts.get("truth") or {}).items()}
        return LabelledAcquisition(
            name=folder.absolute().name,
            stack=folder / STACK,
            cells=truth.get("cells"),
            organelles=truth.get("organelles"),
            voxel_size=facts["voxel_size"],
            stages=facts.get("stages") or {},
        )
    except ValidationError as error:
        raise InputError(path, first_problem(error), "write it as `cmseg phantom` does") from error
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(path, f"does not describe an acquisition ({error!r})", _LAYOUT) from error


def find_labelled(dataset: Path) -> list[LabelledAcquisition]:
    """Every acquisition of a data set: the folder itself, or each of its subfolders, by name.

    Raises
    ------
    InputError
        Where there is none, or one lacks its truth.
    """
    if not dataset.is_dir():
        raise InputError(dataset, "is not a folder", _LAYOUT)
    folders = [dataset] if is_labelled(dataset) else [f for f in sorted(dataset.iterdir()) if is_labelled(f)]
    if not folders:
        raise InputError(dataset, "holds no labelled acquisition", _LAYOUT)
    found = [open_labelled(folder) for folder in folders]
    for one in found:
        if one.cells is None or one.organelles is None:
            raise InputError(one.stack.parent, "lacks the truth of its cells or organelles", _LAYOUT)
    return found


def content_digest(acquisitions: Sequence[LabelledAcquisition]) -> str:
    """Hash of everything a training sees of labelled acquisitions: their files, voxel sizes and stages.

    Raises
    ------
    InputError
        Where a file cannot be read.
    """
    seen = []
    for one in acquisitions:
        files = []
        for path in (one.stack, one.cells, one.organelles):
            try:
                files.append(None if path is None else file_sha256(path))
            except OSError as error:
                raise InputError(path, f"cannot be read ({error.strerror})", _LAYOUT) from error
        seen.append({**one.model_dump(mode="json", include={"name", "voxel_size", "stages"}), "files": files})
    return hashlib.sha256(canonical_json(seen)).hexdigest()


def read_labelled(
    acquisition: LabelledAcquisition, preprocess: PreprocessConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a labelled acquisition as the pipeline would see it.

    Returns
    -------
    image : ndarray of uint8, shape (z, y, x)
        Windowed and median filtered.
    cells : ndarray of unsigned integers
    organelles : ndarray of uint8

    Raises
    ------
    InputError
        Where a file cannot be read, or the truth has another shape or ids beyond 255.
    """
    from cmseg_core.acquisition.reader import open_source, read_labels
    from cmseg_core.preprocess.intensity import find_window, to_uint8
    from cmseg_core.preprocess.median import median_3x3x3

    source = open_source(acquisition.stack, acquisition.voxel_size)
    if acquisition.cells is None or acquisition.organelles is None:
        raise InputError(acquisition.stack.parent, "lacks the truth of its cells or organelles", _LAYOUT)
    keep = source.dtype == np.uint8 and not preprocess.stretch_8bit
    image = to_uint8(
        source.read(0, source.shape[0]), None if keep else find_window(source, *preprocess.window_percentiles)
    )
    cells = read_labels(acquisition.cells, source.shape)
    organelles = read_labels(acquisition.organelles, source.shape)
    if organelles.max(initial=0) > 255:
        raise InputError(acquisition.organelles, "holds ids beyond 255", "give class ids of the taxonomy")
    image = median_3x3x3(image) if preprocess.median_size == 3 else image
    return image, cells, organelles.astype(np.uint8)
