"""OME-Zarr 0.5 images and labels: written section by section, read from 0.4 and 0.5.

The same input gives the same bytes: no times, no host names, no dependence on how many threads wrote.

References
----------
Next-generation file format, version 0.5: https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.errors import BaseZarrError
from zarr.storage import LocalStore

from cmseg_core.acquisition.source import EXPORT_AGAIN, check_pieces
from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize
from cmseg_core.storage.stages import layout, slabs
from cmseg_core.storage.store import Store
from cmseg_core.storage.unpacking import bounded

Read = Callable[[int, int], np.ndarray]
"""Gives the sections from start up to, not including, stop: an array of shape (stop - start, y, x)."""

VERSION = "0.5"
DEPTH = 64
"""Sections of a shard, and so of a slab: a writer holds one slab of a level and two of the level before it."""
PIECE = 8
"""Sections, an even number, that are made coarser at a time."""
COARSEST = 128
"""Levels are added until no side is longer than this."""
SHORTEST = 64
"""A side this short is not halved further."""
NANOMETRES = {
    "angstrom": 0.1,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "meter": 1e9,
}


def level_factors(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Factors (z, y, x) by which each level is coarser than the first: powers of two, per side."""
    factors: list[tuple[int, ...]] = [(1, 1, 1)]
    while max(size := coarse_shape(shape, factors[-1])) > COARSEST:
        factors.append(tuple(f * 2 if side > SHORTEST else f for f, side in zip(factors[-1], size, strict=True)))
    return factors


def coarse_shape(shape: tuple[int, ...], factors: tuple[int, ...]) -> tuple[int, ...]:
    """Shape after merging `factors` voxels along each side; a rest counts as one."""
    return tuple(-(-side // factor) for side, factor in zip(shape, factors, strict=True))


def area_mean(block: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Mean over boxes of `factors` voxels; boxes at the far ends hold what is left. Whole numbers are rounded.

    Parameters
    ----------
    block : ndarray of shape (z, y, x)
    factors : tuple of int
        1 or 2 along each side.

    Returns
    -------
    ndarray of the same dtype
    """
    total = block.astype(np.float32 if block.dtype.itemsize < 4 else np.float64)
    for axis, factor in enumerate(factors):
        if factor == 2:
            if total.shape[axis] % 2:  # the last voxel stands for itself
                total = np.concatenate([total, total.take([-1], axis)], axis)
            pairs = np.moveaxis(total, axis, 0)
            total = np.moveaxis((pairs[0::2] + pairs[1::2]) * 0.5, 0, axis)
    return (np.rint(total) if block.dtype.kind in "iu" else total).astype(block.dtype)


def every_second(block: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """One voxel of each box of `factors` voxels: labels are never mixed."""
    return block[tuple(slice(None, None, factor) for factor in factors)]


def write_image(
    root: str | Path,
    read: Read,
    shape: tuple[int, int, int],
    dtype: np.typing.DTypeLike,
    voxel_size: VoxelSize,
    name: str,
) -> None:
    """Write a volume as a multiscale image, coarser levels by area mean.

    Parameters
    ----------
    root : path
        Folder of the image, for example ``volume.ome.zarr``.
    read : callable
        ``read(start, stop)`` gives sections; called in order, once for each.
    shape : tuple of int
        (z, y, x).
    dtype : dtype
    voxel_size : VoxelSize
        Of the finest level, in nanometres.
    name : str
        Name of the image in its metadata.
    """
    group = zarr.create_group(LocalStore(root), zarr_format=3, overwrite=True)
    levels = _write_levels(group, read, shape, np.dtype(dtype), area_mean)
    group.attrs["ome"] = {"version": VERSION, "multiscales": [_multiscale(name, levels, voxel_size, "area mean")]}


def write_labels(
    root: str | Path,
    name: str,
    read: Read,
    shape: tuple[int, int, int],
    dtype: np.typing.DTypeLike,
    voxel_size: VoxelSize,
    colours: Mapping[int, str] | None = None,
) -> None:
    """Add ``labels/<name>`` to an image that `write_image` made.

    Parameters
    ----------
    root : path
        Folder of the image.
    name : str
    read, shape, dtype, voxel_size
        As in `write_image`; an unsigned or signed integer type.
    colours : mapping of int to str, optional
        Label to ``#rrggbb``.

    Raises
    ------
    InputError
        Where `root` holds no image.
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "iu":
        raise ValueError(f"labels are whole numbers, not {dtype}")
    try:
        image = zarr.open_group(LocalStore(root), mode="r+", zarr_format=3)
    except (BaseZarrError, FileNotFoundError) as error:
        raise InputError(root, "holds no image to label", "write the image first") from error
    labels = image.require_group("labels")
    group = labels.create_group(name, overwrite=True)
    levels = _write_levels(group, read, shape, dtype, every_second)
    about: dict[str, Any] = {"source": {"image": "../../"}}
    if colours:
        about["colors"] = [{"label-value": value, "rgba": _rgba(colours[value])} for value in sorted(colours)]
    multiscale = _multiscale(name, levels, voxel_size, "nearest")
    group.attrs["ome"] = {"version": VERSION, "multiscales": [multiscale], "image-label": about}
    # The list is written last: a label that is listed is whole.
    before: dict[str, Any] = dict(labels.attrs)
    listed = before.get("ome", {}).get("labels", [])
    labels.attrs["ome"] = {"version": VERSION, "labels": sorted({*listed, name})}


def open_image(
    source: str | Path, *, voxel_size: VoxelSize | None = None, endpoint: str | None = None
) -> tuple[Volume, VoxelSize]:
    """Open the finest level of an OME-Zarr image or label, version 0.4 or 0.5.

    Parameters
    ----------
    source : str or path
        Local folder or ``s3://bucket/folder``.
    voxel_size : VoxelSize, optional
        The user's word, in place of what the metadata state or leave out.
    endpoint : str, optional
        Endpoint of the S3 service; by default that of the environment.

    Returns
    -------
    array : Volume
        Has ``shape`` (z, y, x), ``dtype`` and sections by slicing.
    voxel_size : VoxelSize

    Raises
    ------
    InputError
        Where it is no OME-Zarr image, has several channels or times, chunks out of all proportion or with an unknown
        codec, or its voxel size is neither given nor stated with a unit.
    """
    try:
        group = zarr.open_group(_store_of(source, endpoint), mode="r")
        attributes: dict[str, Any] = dict(group.attrs)
        multiscale = attributes.get("ome", attributes)["multiscales"][0]
        axes, data = multiscale["axes"], multiscale["datasets"][0]
        array = group[data["path"]]
        names = [axis["name"] for axis in axes]
        if not isinstance(array, zarr.Array):
            raise TypeError("the finest level is not an array")
    except (BaseZarrError, FileNotFoundError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            source, "is not an OME-Zarr image", "give the folder whose metadata lists multiscales"
        ) from error
    if names[-3:] != ["z", "y", "x"] or len(names) != array.ndim:
        raise InputError(source, f"has the axes {names}", "give an image whose last axes are z, y, x")
    if any(side != 1 for side in array.shape[:-3]):
        raise InputError(source, f"has several channels or times {array.shape}", "give one channel at one time")
    check_pieces(source, array.shape, array.chunks, "chunks")
    voxel_size = voxel_size or _voxel_size(source, axes, data, multiscale)
    return Volume(source, bounded(source, array)), voxel_size


class Volume:
    """The volume within an array whose leading axes (time, channel), if it has any, have length one."""

    def __init__(self, source: str | Path, array: zarr.Array) -> None:
        self._source = source
        self._array = array
        self._leading = (0,) * (array.ndim - 3)
        self.shape: tuple[int, ...] = array.shape[-3:]
        self.dtype: np.dtype = array.dtype
        self.ndim = 3

    def __getitem__(self, selection: Any) -> np.ndarray:
        selection = selection if isinstance(selection, tuple) else (selection,)
        try:
            return np.asarray(self._array[(*self._leading, *selection)])
        except InputError:
            raise
        except ValueError as error:
            raise InputError(self._source, f"cannot be decoded ({error})", EXPORT_AGAIN) from error


def _write_levels(
    group: zarr.Group, read: Read, shape: tuple[int, ...], dtype: np.dtype, coarsen: Callable[..., np.ndarray]
) -> list[tuple[int, ...]]:
    """Write all levels, each from the one before it; returns their factors."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a volume has three sides of at least one voxel, not {shape}")
    factors = level_factors(shape)
    finer = _create_level(group, 0, shape, dtype)
    for start, stop in slabs(shape, DEPTH):
        block = np.asarray(read(start, stop))
        if block.shape != (stop - start, *shape[1:]):
            raise ValueError(f"sections {start} to {stop} have the shape {block.shape}, in a volume of {shape}")
        finer[start:stop] = block.astype(dtype, copy=False)
    for number in range(1, len(factors)):
        step = tuple(b // a for a, b in zip(factors[number - 1], factors[number], strict=True))
        coarser = _create_level(group, number, coarse_shape(shape, factors[number]), dtype)
        for start, stop in slabs(coarser.shape, DEPTH):
            block = np.asarray(finer[start * step[0] : stop * step[0]])
            # A few sections at a time: the sums behind a mean are wider than the samples.
            thin = range(0, len(block), PIECE)
            coarser[start:stop] = np.concatenate([coarsen(block[at : at + PIECE], step) for at in thin])
        finer = coarser
    return factors


def _create_level(group: zarr.Group, number: int, shape: tuple[int, ...], dtype: np.dtype) -> zarr.Array:
    chunks, shards = layout(shape, DEPTH)
    return group.create_array(
        str(number),
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        compressors=ZstdCodec(level=3),
        fill_value=0,
        dimension_names=("z", "y", "x"),
    )


def _multiscale(name: str, levels: list[tuple[int, ...]], voxel_size: VoxelSize, method: str) -> dict[str, Any]:
    datasets = []
    for number, factors in enumerate(levels):
        scale = [f * size for f, size in zip(factors, voxel_size.zyx, strict=True)]
        # A coarse voxel is centred between the fine ones that it stands for.
        shift = [(f - 1) / 2 * size for f, size in zip(factors, voxel_size.zyx, strict=True)]
        steps = [{"type": "scale", "scale": scale}]
        if any(shift):
            steps.append({"type": "translation", "translation": shift})
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    return {"name": name, "axes": axes, "datasets": datasets, "type": method}


def _rgba(colour: str) -> list[int]:
    return [*bytes.fromhex(colour.removeprefix("#")), 255]


def _store_of(source: str | Path, endpoint: str | None) -> Any:
    if str(source).startswith("s3://"):
        return Store.open(str(source), endpoint=endpoint).zarr_store("", read_only=True)
    return LocalStore(source, read_only=True)


def _voxel_size(source: str | Path, axes: list[dict], data: dict, multiscale: dict) -> VoxelSize:
    mend = "state the voxel size: --voxel-size Z Y X, in nanometres"
    sizes = [1.0] * len(axes)
    steps = [*data.get("coordinateTransformations", ()), *multiscale.get("coordinateTransformations", ())]
    scales = [step["scale"] for step in steps if step.get("type") == "scale"]
    if not scales or any(len(scale) != len(axes) for scale in scales):
        raise InputError(source, "does not state its voxel size", mend)
    for scale in scales:
        sizes = [size * factor for size, factor in zip(sizes, scale, strict=True)]
    units = [axis.get("unit") for axis in axes[-3:]]
    if any(unit not in NANOMETRES for unit in units):
        raise InputError(source, f"gives its voxel size in the units {units}", mend)
    zyx = [size * NANOMETRES[str(unit)] for size, unit in zip(sizes[-3:], units, strict=True)]
    if min(zyx) <= 0:
        raise InputError(source, f"gives the voxel size {zyx}", mend)
    return VoxelSize.from_zyx(zyx)
