"""A folder of one-slice images as a stack."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from cmseg_core.acquisition.source import IMAGE_DTYPES, check_geometry
from cmseg_core.acquisition.tiff import EXPORT_AGAIN, GREY, TiffSections, open_tiff
from cmseg_core.acquisition.vendor import Statement
from cmseg_core.errors import InputError

SUFFIXES = {".tif": "TIFF", ".tiff": "TIFF", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
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
            section = _decode(file, self.dtype)
            if section.shape != self.shape[1:] or section.dtype != self.dtype:
                raise InputError(file, "has changed since the folder was opened", "start again once it is complete")
            slab[position] = section
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
        size, dtype = _png_header(file) if kind == "PNG" else _jpeg_header(file)
    check_geometry(file, (1, *size), dtype, dtypes)
    return (size, dtype), statements


def _single(file: Path, dtypes: tuple[str, ...]) -> TiffSections:
    sections = open_tiff(file, dtypes)
    if sections.shape[0] != 1:
        raise InputError(
            file, f"holds {sections.shape[0]} sections in a folder of single ones", "give the path of the stack itself"
        )
    return sections


def _decode(file: Path, dtype: np.dtype) -> np.ndarray:
    kind = SUFFIXES[file.suffix.lower()]
    if kind == "TIFF":
        return _single(file, (dtype.name,)).read(0, 1)[0]
    try:
        data = file.read_bytes()
        return imagecodecs.png_decode(data) if kind == "PNG" else imagecodecs.jpeg8_decode(data)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(file, f"cannot be decoded ({error})", EXPORT_AGAIN) from error


def _png_header(file: Path) -> tuple[tuple[int, int], np.dtype]:
    with file.open("rb") as stream:
        head = stream.read(29)
        stream.seek(max(0, file.stat().st_size - 12))
        tail = stream.read()
    if len(head) < 29 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise InputError(file, "is not a PNG image", EXPORT_AGAIN)
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    if b"IEND" not in tail:
        raise InputError(file, "ends too early (truncated)", EXPORT_AGAIN)
    if colour != 0:
        raise InputError(file, "is a colour, palette or transparent image", GREY)
    if bits not in (8, 16):
        raise InputError(file, f"has {bits} bits a sample", "convert it to 8 or 16 bits")
    return (height, width), np.dtype(np.uint8 if bits == 8 else np.uint16)


def _jpeg_header(file: Path) -> tuple[tuple[int, int], np.dtype]:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - JPEG_TAIL_BYTES))
        complete = b"\xff\xd9" in stream.read()
        stream.seek(0)
        if stream.read(2) != b"\xff\xd8":
            raise InputError(file, "is not a JPEG image", EXPORT_AGAIN)
        while len(marker := stream.read(4)) == 4 and marker[0] == 0xFF:
            code, length = struct.unpack(">xBH", marker)
            if code in range(0xC0, 0xD0) and code not in (0xC4, 0xC8, 0xCC):
                frame = stream.read(6)
                if len(frame) < 6 or not complete:
                    break
                bits, height, width, channels = struct.unpack(">BHHB", frame)
                if channels != 1:
                    raise InputError(file, f"is a colour image ({channels} channels)", GREY)
                if bits != 8:
                    raise InputError(file, f"has {bits} bits a sample", "convert it to 8 bits")
                return (height, width), np.dtype(np.uint8)
            stream.seek(length - 2, 1)
    raise InputError(file, "ends too early (truncated)", EXPORT_AGAIN)
