"""A folder of one-slice images as a stack."""

from __future__ import annotations

import io
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np

from cmseg_core.acquisition.jpeg import jpeg_size
from cmseg_core.acquisition.source import EXPORT_AGAIN, GREY, IMAGE_DTYPES, check_geometry
from cmseg_core.acquisition.tiff import TiffSections, open_tiff
from cmseg_core.acquisition.vendor import Statement
from cmseg_core.errors import InputError

SUFFIXES = {".tif": "TIFF", ".tiff": "TIFF", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
PNG_TAIL_BYTES = 12
JPEG_TAIL_BYTES = 4096


@dataclass(frozen=True)
class FolderSections:
    """Sections of a folder, one file each, in the natural order of their names."""

    path: Path
    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    dtype: np.dtype
    metadata: dict[str, Any]
    statements: tuple[Statement, ...]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode sections `start` up to `stop` into an array of shape (stop - start, y, x)."""
        slab = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for position, file in enumerate(self.files[start:stop]):
            _decode(file, slab[position])
        return slab


def open_folder(path: Path, dtypes: tuple[str, ...] = IMAGE_DTYPES) -> FolderSections:
    """Open a folder of one-slice TIFF, PNG or JPEG images; every header is checked, nothing is decoded.

    Raises
    ------
    InputError
        Where the folder holds no images or several kinds, or where one of them is damaged, coloured, or differs from
        the first in size or type.
    """
    files = sorted((f for f in path.iterdir() if _is_image(f)), key=natural_key)
    if not files:
        raise InputError(path, "holds no TIFF, PNG or JPEG images", "give a folder with one image a section")
    kinds = {SUFFIXES[f.suffix.lower()] for f in files}
    if len(kinds) > 1:
        raise InputError(path, f"holds {' and '.join(sorted(kinds))} images", "keep one kind, one image a section")
    first, statements = _probe(files[0], dtypes)
    for file in files[1:]:
        (size, dtype), _ = _probe(file, dtypes)
        if (size, dtype) != first:
            expected = f"{first[0][0]} x {first[0][1]} {first[1]}"
            raise InputError(
                file,
                f"is {size[0]} x {size[1]} {dtype}, unlike {files[0].name} with {expected}",
                "make all sections equal, or leave this one out",
            )
    shape = (len(files), *first[0])
    check_geometry(path, shape, first[1], dtypes)
    facts: dict[str, Any] = {"format": f"folder of {kinds.pop()}", **numbering([f.stem for f in files])}
    if facts["format"].endswith("JPEG"):
        facts["lossy"] = True
    return FolderSections(path, tuple(files), shape, first[1], facts, statements)


def natural_key(path: Path) -> tuple[Any, ...]:
    """Sorting key that puts slice2 before slice10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return (*((int(p), "") if i % 2 else (-1, p) for i, p in enumerate(parts)), (-1, path.name))


def numbering(stems: list[str]) -> dict[str, Any]:
    """Gaps in the numbers of a folder's files.

    Parameters
    ----------
    stems : list of str
        File names without suffix, in order.

    Returns
    -------
    dict
        ``missing_sections``: the numbers that are not there (empty where the numbering is complete or where there is
        none). Of several numbers in the names, the one with the fewest gaps counts. A constant step is no gap; a
        numbering with more gaps than files, such as a time stamp, counts as none.
    """
    groups = [re.findall(r"\d+", stem) for stem in stems]
    columns = zip(*groups, strict=True) if len({len(g) for g in groups}) == 1 and len(stems) > 1 else ()
    best: list[int] | None = None
    for column in columns:
        numbers = sorted(int(text) for text in column)
        steps = [b - a for a, b in zip(numbers, numbers[1:], strict=False)]
        if min(steps) <= 0:
            continue
        step = math.gcd(*steps)
        if (numbers[-1] - numbers[0]) // step + 1 > 2 * len(numbers):
            continue
        missing = sorted(set(range(numbers[0], numbers[-1] + 1, step)) - set(numbers))
        if best is None or len(missing) < len(best):
            best = missing
    return {"missing_sections": best or []}


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _probe(file: Path, dtypes: tuple[str, ...]) -> tuple[tuple[tuple[int, int], np.dtype], tuple[Statement, ...]]:
    """Size and sample type of one slice, from its header."""
    kind = SUFFIXES[file.suffix.lower()]
    statements: tuple[Statement, ...] = ()
    if kind == "TIFF":
        sections = _single(file, dtypes)
        size, dtype, statements = sections.shape[1:], sections.dtype, sections.statements
    else:
        with file.open("rb") as stream:
            size, dtype = _header(file, stream)
    check_geometry(file, (1, *size), dtype, dtypes)
    return (size, dtype), statements


def _single(file: Path, dtypes: tuple[str, ...]) -> TiffSections:
    sections = open_tiff(file, dtypes)
    if sections.shape[0] != 1:
        raise InputError(
            file, f"holds {sections.shape[0]} sections in a folder of single ones", "give the path of the stack itself"
        )
    return sections


def _decode(file: Path, section: np.ndarray) -> None:
    """Decode one slice into its place, once its header has been read again: the file may be another one by now."""
    stated = section.shape, section.dtype
    kind = SUFFIXES[file.suffix.lower()]
    if kind == "TIFF":
        tiff = _single(file, (section.dtype.name,))
        if (tiff.shape[1:], tiff.dtype) != stated:
            raise _changed(file)
        section[:] = tiff.read(0, 1)[0]
        return
    try:
        data = file.read_bytes()
        if _header(file, io.BytesIO(data)) != stated:
            raise _changed(file)
        # The decoders check the array against their own reading of the header before they decode.
        decode = imagecodecs.png_decode if kind == "PNG" else imagecodecs.jpeg8_decode
        decode(data, out=section)
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(file, f"cannot be decoded ({error})", EXPORT_AGAIN) from error


def _changed(file: Path) -> InputError:
    return InputError(file, "has changed since the folder was opened", "start again once it is complete")


def _header(file: Path, stream: BinaryIO) -> tuple[tuple[int, int], np.dtype]:
    return _png_header(file, stream) if SUFFIXES[file.suffix.lower()] == "PNG" else _jpeg_header(file, stream)


def _png_header(file: Path, stream: BinaryIO) -> tuple[tuple[int, int], np.dtype]:
    head = stream.read(29)
    if len(head) < 29 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise InputError(file, "is not a PNG image", EXPORT_AGAIN)
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    if b"IEND" not in _tail(stream, PNG_TAIL_BYTES):
        raise InputError(file, "ends too early (truncated)", EXPORT_AGAIN)
    if colour != 0:
        raise InputError(file, "is a colour, palette or transparent image", GREY)
    if bits not in (8, 16):
        raise InputError(file, f"has {bits} bits a sample", "convert it to 8 or 16 bits")
    return (height, width), np.dtype(np.uint8 if bits == 8 else np.uint16)


def _jpeg_header(file: Path, stream: BinaryIO) -> tuple[tuple[int, int], np.dtype]:
    size = jpeg_size(file, stream)
    if b"\xff\xd9" not in _tail(stream, JPEG_TAIL_BYTES):
        raise InputError(file, "ends too early (truncated)", EXPORT_AGAIN)
    return size, np.dtype(np.uint8)


def _tail(stream: BinaryIO, length: int) -> bytes:
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - length))
    return stream.read()
