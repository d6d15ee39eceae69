"""Simulated acquisitions on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile

from cmseg_core.errors import InputError
from cmseg_core.phantom.field import Field

_SLAB = 16
_IMAGEJ_LIMIT = 2**31


def write_acquisition(field: Field, folder: Path, progress: Callable[[int], None] | None = None) -> None:
    """Write stack.tif, cells.tif, organelles.tif and, last, acquisition.json.

    The field is rendered slab by slab, so that its size is bounded by the disk alone. The folder appears whole or not
    at all.

    Parameters
    ----------
    field : Field
        What to write.
    folder : Path
        New folder.
    progress : callable, optional
        Called with the number of sections done since the last call.

    Raises
    ------
    InputError
        Where the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(folder, "exists and is not empty", "name a new folder")
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    outputs = {"stack.tif": np.uint8, "cells.tif": np.uint16, "organelles.tif": np.uint8}
    plain = field.shape[0] * field.shape[1] * field.shape[2] * 2 < _IMAGEJ_LIMIT
    writers = {name: tifffile.TiffWriter(staging / name, bigtiff=not plain, imagej=plain) for name in outputs}
    scratch = {
        name: np.lib.format.open_memmap(staging / f"{name}.npy", "w+", dtype, field.shape)
        for name, dtype in outputs.items()
    }
    for start in range(0, field.shape[0], _SLAB):
        stop = min(start + _SLAB, field.shape[0])
        for target, slab in zip(scratch.values(), field.render(start, stop), strict=True):
            target[start:stop] = slab
        if progress is not None:
            progress(stop - start)
    for name, writer in writers.items():
        _write_stack(writer, scratch[name], field, plain)
        writer.close()
        (staging / f"{name}.npy").unlink()
    (staging / "acquisition.json").write_text(json.dumps(_facts(field), indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    staging.rename(folder)


def _write_stack(writer: tifffile.TiffWriter, volume: np.ndarray, field: Field, plain: bool) -> None:
    size = field.voxel_size
    metadata = {"axes": "ZYX", "spacing": size.z / 1000, "unit": "um"} if plain else None
    writer.write(
        _sections(volume),
        shape=volume.shape,
        dtype=volume.dtype,
        resolution=(1000 / size.x, 1000 / size.y),
        metadata=metadata,
        software=False,
        datetime=False,
    )


def _sections(volume: np.ndarray) -> Iterator[np.ndarray]:
    yield from volume


def _facts(field: Field) -> dict[str, object]:
    return {
        "voxel_size": field.voxel_size.model_dump(),
        "shape": list(field.shape),
        "truth": {"cells": "cells.tif", "organelles": "organelles.tif"},
        "stages": {str(cell): stage for cell, stage in field.stages.items()},
        "missing_sections": list(field.missing),
        "defects": list(field.look.defects),
        "simulated": True,
        "seed": field.seed,
    }
