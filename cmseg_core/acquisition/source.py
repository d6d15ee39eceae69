"""A stack of sections that is read slab by slab, never as a whole."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize

MAX_SECTION_PIXELS = 1 << 29
"""Largest section, in pixels (23170 squared). A header that promises more is refused before decoding."""
MAX_SECTIONS = 200_000
"""Largest number of sections."""
SPARE_PIXELS = 1 << 25
"""Pixels that a tile or chunk may always have, however small the image: a chunk of 256 cubed has half as many."""
IMAGE_DTYPES = ("uint8", "uint16", "int16", "float32")
"""Sample types of an image stack."""
LABEL_DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32")
"""Sample types of a label stack."""
EXPORT_AGAIN = "copy or export it again"
GREY = "convert it to grey, one channel"
HASH_CHUNK_BYTES = 8 << 20
SLAB_BYTES = 64 << 20
"""Memory that one slab of a streamed pass may take."""


class Sections(Protocol):
    """What a format has to offer: geometry, content files and slabs."""

    @property
    def path(self) -> Path: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def metadata(self) -> dict[str, Any]: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class ArraySections:
    """Sections of anything that slices like an array: a NumPy array, a memory map, a chunked array on disk.

    Parameters
    ----------
    array : array-like of shape (z, y, x)
        Must have ``shape``, ``dtype`` and slicing along the first axis.
    path : Path
        Name for messages.
    metadata : dict
        Facts about the acquisition.
    """

    array: Any
    path: Path = Path("array")
    metadata: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        check_geometry(self.path, self.shape, self.dtype, IMAGE_DTYPES)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sections, rows and columns."""
        depth, height, width = self.array.shape
        return depth, height, width

    @property
    def dtype(self) -> np.dtype:
        """Sample type."""
        return np.dtype(self.array.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Sections `start` up to `stop`."""
        return np.asarray(self.array[start:stop])


@dataclass(frozen=True)
class SectionSource:
    """One acquisition: its sections, their voxel size and what is known about it.

    Parameters
    ----------
    sections : Sections
        The format's reader.
    voxel_size : VoxelSize
        In nanometres.
    metadata : dict
        JSON-compatible facts: format, where the voxel size comes from, ``missing_sections`` of a numbered folder.
    """

    sections: Sections
    voxel_size: VoxelSize
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """File or folder of the stack."""
        return self.sections.path

    @property
    def files(self) -> tuple[Path, ...]:
        """Content files in the order of the sections."""
        return self.sections.files

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sections, rows and columns."""
        return self.sections.shape

    @property
    def dtype(self) -> np.dtype:
        """Sample type in native byte order."""
        return self.sections.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded stack."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode sections `start` up to `stop`.

        Returns
        -------
        ndarray of shape (stop - start, y, x)
            In the source's sample type.

        Raises
        ------
        IndexError
            Where the range does not lie within the stack.
        InputError
            Where the content cannot be decoded.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"sections {start} to {stop} of a stack of {self.shape[0]}")
        if start == stop:
            return np.empty((0, *self.shape[1:]), self.dtype)
        return self.sections.read(start, stop)

    def slabs(self, budget: int = SLAB_BYTES) -> Iterator[tuple[int, np.ndarray]]:
        """Stream the stack in order as (first section, slab), each of `budget` bytes or one section."""
        per_section = self.shape[1] * self.shape[2] * self.dtype.itemsize
        step = max(1, budget // per_section)
        for start in range(0, self.shape[0], step):
            yield start, self.read(start, min(start + step, self.shape[0]))

    def sha256(self) -> str:
        """Hash of the content: of the file's bytes, or of names and bytes of a folder's files in order.

        A source without files is hashed by its shape, sample type and decoded samples.
        """
        digest = hashlib.sha256()
        if not self.files:
            digest.update(f"{self.shape} {self.dtype.str}".encode())
            for _, slab in self.slabs():
                digest.update(np.ascontiguousarray(slab).data)
            return digest.hexdigest()
        named = self.path.is_dir()
        for file in self.files:
            if named:
                # The length keeps the borders between files: moving bytes from one to the next changes the hash.
                digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(HASH_CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()


def check_geometry(path: Path, shape: tuple[int, ...], dtype: np.dtype, allowed: tuple[str, ...]) -> None:
    """Refuse empty or enormous sections and sample types that are not handled, from the header alone.

    Raises
    ------
    InputError
        Where the stack is empty, a section exceeds `MAX_SECTION_PIXELS`, or the sample type is not among `allowed`.
    """
    depth, height, width = shape
    if min(shape) < 1:
        raise InputError(path, f"has an empty shape {shape}", "give a stack with at least one section")
    if height * width > MAX_SECTION_PIXELS or depth > MAX_SECTIONS:
        raise InputError(
            path,
            f"claims {depth} sections of {height} x {width} pixels; "
            f"the limits are {MAX_SECTIONS} sections and {MAX_SECTION_PIXELS} pixels each",
            "check the file, or cut it into smaller fields",
        )
    if dtype.newbyteorder("=").name not in allowed:
        raise InputError(path, f"has samples of type {dtype.name}", f"convert it to one of {', '.join(allowed)}")


def check_pieces(subject: object, shape: tuple[int, ...], piece: tuple[int, ...], name: str) -> None:
    """Refuse tiles, strips or chunks that decode to far more than the image in them, from the header alone.

    A piece is decoded as a whole, whatever is asked of it. It may reach beyond the image, as writers with fixed sizes
    of tiles and chunks have it, but not so far that a small image fills the memory.

    Parameters
    ----------
    subject : object
        Name for messages.
    shape : tuple of int
        Of the image.
    piece : tuple of int
        Sides of one piece, along the same axes.
    name : str
        What the pieces are called.

    Raises
    ------
    InputError
        Where a piece has more than `MAX_SECTION_PIXELS`, or both more than `SPARE_PIXELS` and more than twice as many
        pixels as the part of it within the image.
    """
    size = math.prod(piece)
    within = math.prod(map(min, piece, shape))
    if min(piece) < 1 or size > MAX_SECTION_PIXELS or size > max(SPARE_PIXELS, 2 * within):
        raise InputError(
            subject,
            f"stores an image of {_sides(shape)} pixels in {name} of {_sides(piece)}, out of all proportion",
            f"export it again with smaller {name}",
        )


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
