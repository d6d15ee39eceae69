"""Simulated acquisitions from the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize

if TYPE_CHECKING:
    from cmseg_core.phantom import Field

MOST_CELLS = 60_000
"""Ids of cells are 16 bit."""


def simulate(
    *, cells: int, shape: tuple[int, int, int] | None, voxel_size: VoxelSize, seed: int, hard: bool, defects: list[str]
) -> Field:
    """Draw a field, with every argument checked.

    Raises
    ------
    InputError
        Where an argument is out of range.
    """
    from cmseg_core.phantom import DEFECTS, draw_field

    if not 1 <= cells <= MOST_CELLS:
        raise InputError("--cells", f"{cells} is out of range", f"use 1 to {MOST_CELLS}")
    if shape is not None and min(shape) < 8:
        raise InputError("--shape", f"{' '.join(map(str, shape))} is too small", "use 8 or more along each axis")
    if seed < 0:
        raise InputError("--seed", f"{seed} is negative", "use 0 or more")
    unknown = sorted(set(defects) - set(DEFECTS))
    if unknown:
        raise InputError("--defect", f"there is no defect {', '.join(unknown)}", f"use {', '.join(DEFECTS)}")
    return draw_field(seed, cells=cells, shape=shape, voxel_size=voxel_size, hard=hard, defects=defects)


def write(field: Field, folder: Path, progress: Callable[[int], None] | None = None) -> None:
    """Write a field as :func:`cmseg_core.phantom.write_acquisition` does, once the folder is known to be usable.

    Raises
    ------
    InputError
        Where the folder holds something or cannot be written.
    """
    from cmseg_core.phantom import write_acquisition

    folder = folder.absolute()
    check_new_folder(folder)
    write_acquisition(field, folder, progress)


def check_new_folder(folder: Path) -> None:
    """Raise `InputError` unless `folder` is absent or empty, and can be written to; leaves no trace."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(folder, "exists and is not empty", "name a new folder")
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=nearest):
            pass
    except OSError as error:
        raise InputError(
            folder, f"cannot be written ({error.strerror})", "choose a folder that can be written"
        ) from error
