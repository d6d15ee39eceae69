"""Opening what a request names as its source: a file, a folder, an OME-Zarr, local or in a bucket."""

from __future__ import annotations

from pathlib import Path

from cmseg_core.acquisition.reader import open_source
from cmseg_core.acquisition.source import ArraySections, SectionSource
from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize
from cmseg_core.storage.omezarr import open_image
from cmseg_core.storage.store import Store


def open_stack(source: str, voxel_size: VoxelSize | None) -> SectionSource:
    """Open a stack that is at hand; see :func:`cmseg_core.acquisition.reader.open_source`.

    Raises
    ------
    InputError
        As there, and for an OME-Zarr that is none.
    """
    path = Path(source)
    if not is_zarr(path):
        return open_source(path, voxel_size)
    array, size = open_image(path, voxel_size=voxel_size)
    sections = ArraySections(array, path, {"format": "OME-Zarr"})
    return SectionSource(sections, size, {"voxel_size_from": "the user" if voxel_size else "OME-Zarr metadata"})


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr hierarchy."""
    return any((path / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup"))


def fetch(uri: str, folder: Path, *, endpoint: str | None, region: str) -> Path:
    """Bring ``s3://bucket/key`` into a local folder: one object, or everything below it.

    Returns
    -------
    Path
        Of the file or folder, under its own name, with the ``acquisition.json`` that lies beside a file.

    Raises
    ------
    InputError
        Where nothing lies there.
    """
    above, _, name = uri.rstrip("/").rpartition("/")
    if above in {"s3:/", "s3:"}:
        raise InputError(uri, "is a bucket, not a stack", "name the stack or the folder in it")
    store = Store.open(above, endpoint=endpoint, region=region)
    if store.exists(name):
        if store.exists("acquisition.json"):
            store.download_file("acquisition.json", folder / "acquisition.json")
        return store.download_file(name, folder / name)
    try:
        store.download_tree(name, folder / name)
    except KeyError as error:
        raise InputError(uri, "does not exist", "check the address") from error
    return folder / name
