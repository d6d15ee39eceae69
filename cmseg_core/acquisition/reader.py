"""Opening an acquisition: which format it is, what its voxel size is, and whether all of it is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmseg_core.acquisition.folder import FolderSections, open_folder
from cmseg_core.acquisition.source import IMAGE_DTYPES, LABEL_DTYPES, SectionSource
from cmseg_core.acquisition.tiff import TiffSections, open_tiff
from cmseg_core.acquisition.vendor import resolve, statement_of_sidecar
from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize


def open_source(source: str | Path, voxel_size: VoxelSize | None = None) -> SectionSource:
    """Open a stack of sections: a multi-page TIFF, BigTIFF or OME-TIFF, or a folder of one-slice images.

    Parameters
    ----------
    source : str or Path
        Local file or folder.
    voxel_size : VoxelSize, optional
        The user's word. Without it the stack must state its own: in ImageJ metadata, in OME-XML, in an
        ``acquisition.json`` beside it; Zeiss and FEI tags know the pixel size of a section only.

    Returns
    -------
    SectionSource
        Checked, nothing decoded yet. Its metadata holds ``format``, ``voxel_size_from``, ``voxel_size_stated`` (all
        that the files say) and, for a folder, ``missing_sections``.

    Raises
    ------
    InputError
        Where the path is missing, is not a readable stack of equal grey sections, is truncated, or where no voxel size
        is known: it is never guessed.
    """
    path = Path(source)
    sections = _open(path, IMAGE_DTYPES)
    sidecar = statement_of_sidecar(path) if voxel_size is None else None
    stated = [s for s in (*sections.statements, sidecar) if s is not None]
    size, origin = resolve(path, voxel_size, stated)
    facts = {**sections.metadata, "voxel_size_from": origin, "voxel_size_stated": [s.as_json() for s in stated]}
    return SectionSource(sections, size, facts)


def read_labels(path: str | Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Read a label stack of known shape, such as the truth of an acquisition.

    Parameters
    ----------
    path : str or Path
        TIFF stack or folder of one-slice images with integer samples.
    shape : tuple of int
        Sections, rows and columns of the acquisition that it belongs to.

    Returns
    -------
    ndarray of shape `shape`
        uint8, uint16 or uint32; 0 is what lies outside.

    Raises
    ------
    InputError
        Where it cannot be read, its shape differs, or it holds negative numbers.
    """
    sections = _open(Path(path), LABEL_DTYPES)
    if sections.shape != tuple(shape):
        mend = "give labels on the same grid as the stack"
        raise InputError(path, f"has shape {sections.shape}, the stack {tuple(shape)}", mend)
    labels = sections.read(0, shape[0])
    if labels.dtype.kind == "i":
        if labels.min() < 0:
            raise InputError(path, "holds negative labels", "use 0 for what lies outside and positive ids")
        labels = labels.astype(f"u{labels.dtype.itemsize}")
    return labels


def _open(path: Path, dtypes: tuple[str, ...]) -> TiffSections | FolderSections:
    if not path.exists():
        raise InputError(path, "does not exist", "check the path")
    if (path / "zarr.json").exists() or (path / ".zattrs").exists() or (path / ".zgroup").exists():
        raise InputError(path, "is a Zarr store where a TIFF or a folder of images is needed", "export it as TIFF")
    if path.is_dir():
        return open_folder(path, dtypes)
    if not path.is_file():
        raise InputError(path, "is neither a file nor a folder", "give a TIFF stack or a folder of images")
    if not path.stat().st_size:
        raise InputError(path, "is empty", "copy or export it again")
    try:
        return open_tiff(path, dtypes)
    except PermissionError as error:
        raise InputError(path, "may not be read", "change its permissions") from error
