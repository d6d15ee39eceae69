"""Multi-page TIFF, BigTIFF and OME-TIFF stacks."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from cmseg_core.acquisition.jpeg import jpeg_size
from cmseg_core.acquisition.source import (
    EXPORT_AGAIN,
    GREY,
    IMAGE_DTYPES,
    MAX_SECTIONS,
    check_geometry,
    check_pieces,
)
from cmseg_core.acquisition.vendor import Statement, statements_of_tiff
from cmseg_core.errors import InputError

STACKING_AXES = frozenset("ZIQT")
"""Axes along which a three-dimensional file may hold its sections; writers that know no Z call them I, Q or T."""

MAX_ANNOTATION_COLOURS = 0.25
"""Share of a palette that may stand for annotations, the rest being the grey ramp."""

JPEG = 7
BOUNDED = frozenset((1, 5, 8, 32773, 32946, 34925, 34926, 50000, 50013))
"""Compressions whose decoder stops at the size of a tile or strip: none, LZW, deflate, PackBits, LZMA, Zstandard.

The others hold a small image with a size of its own in each tile; of these only JPEG's is read beforehand.
"""


@dataclass(frozen=True)
class TiffSections:
    """Sections of one TIFF file, checked when opened and decoded on demand.

    The file is opened for each slab, so that an instance can be shared between threads and sent between processes.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    metadata: dict[str, Any]
    statements: tuple[Statement, ...]
    pages: tuple[int, ...]
    """Page of each section; empty where the samples lie in one run from `offset`."""
    offset: int
    stored_dtype: np.dtype
    storage: tuple[int, ...]
    """Compression and sides of a tile or strip."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode sections `start` up to `stop` into an array of shape (stop - start, y, x)."""
        slab = np.empty((stop - start, *self.shape[1:]), self.dtype)
        try:
            if self.pages:
                with tifffile.TiffFile(self.path) as tif:
                    self._refuse_other_storage(tif, start)
                    # One section more than one dimension less: tifffile drops the axis of a single page.
                    out = slab if stop - start > 1 else slab[0]
                    tif.asarray(key=self.pages[start:stop], out=out, maxworkers=_threads())
            else:
                self._read_run(slab, start)
        except InputError:
            raise
        except Exception as error:  # the codecs raise their own kinds of error, without a common base
            reason = f"sections {start} to {stop - 1} cannot be decoded ({_one_line(error)})"
            raise InputError(self.path, reason, EXPORT_AGAIN) from error
        return slab

    def _refuse_other_storage(self, tif: tifffile.TiffFile, section: int) -> None:
        """Refuse a page in other tiles than those that were checked when the file was opened.

        In an OME-TIFF, or one of ImageJ or tifffile, all pages are then taken to be like the first. The pages of a
        slab are decoded like its first, so that looking at that one is enough.
        """
        page = tif.pages[self.pages[section]]
        if _storage(page.keyframe) != self.storage:
            raise InputError(self.path, f"section {section} is stored unlike the first", EXPORT_AGAIN)

    def _read_run(self, slab: np.ndarray, start: int) -> None:
        per_section = self.shape[1] * self.shape[2] * self.stored_dtype.itemsize
        with self.path.open("rb") as stream:
            stream.seek(self.offset + start * per_section)
            if stream.readinto(slab.data.cast("B")) != slab.nbytes:
                raise InputError(self.path, "ends before its last section (truncated)", EXPORT_AGAIN)
        if self.stored_dtype != self.dtype:
            slab.byteswap(inplace=True)


def open_tiff(path: Path, dtypes: tuple[str, ...] = IMAGE_DTYPES) -> TiffSections:
    """Open a TIFF stack and check its header, its pages and that its samples are all there.

    Parameters
    ----------
    path : Path
    dtypes : tuple of str
        Sample types to accept.

    Raises
    ------
    InputError
        Where it is not a TIFF, is truncated, holds colour, further axes or pages of different size, or is too large.
    """
    directories = _count_directories(path)
    try:
        with tifffile.TiffFile(path) as tif:
            return _checked(path, tif, directories, dtypes)
    except InputError:
        raise
    except Exception as error:  # a damaged header surfaces as anything from KeyError to struct.error
        reason = f"is not a readable TIFF ({_one_line(error)})"
        raise InputError(path, reason, EXPORT_AGAIN) from error


def _checked(path: Path, tif: tifffile.TiffFile, directories: int, dtypes: tuple[str, ...]) -> TiffSections:
    _refuse_colour(path, tif.pages.first)
    series = [s for s in tif.series if not s.keyframe.is_reduced]
    if len(series) != 1:
        sizes = sorted({"x".join(map(str, s.keyframe.shape)) for s in series})
        raise InputError(
            path, f"its pages differ in size, type or image ({', '.join(sizes)})", "give one stack of equal sections"
        )
    if len(tif.pages) != directories:
        raise InputError(path, f"holds {directories} pages of which {len(tif.pages)} can be read", EXPORT_AGAIN)
    main = series[0]
    shape = _stack_shape(path, main)
    stored = np.dtype(main.dtype)
    check_geometry(path, shape, stored, dtypes)
    _check_storage(path, main.keyframe)
    images = (tif.imagej_metadata or {}).get("images", shape[0]) if tif.is_imagej else shape[0]
    if images != shape[0]:
        raise InputError(path, f"promises {images} images and holds {shape[0]} (truncated)", EXPORT_AGAIN)
    run = main.dataoffset is not None and main.keyframe.fillorder == 1
    if main.dataoffset is not None:
        _refuse_short(path, main.dataoffset + main.nbytes)
    pages = () if run else _page_numbers(path, main, shape[0])
    if main.keyframe.compression == JPEG:
        _refuse_large_jpegs(path, main)
    facts: dict[str, Any] = {
        "format": _format(tif),
        "compression": tifffile.COMPRESSION(main.keyframe.compression).name.lower(),
    }
    if main.keyframe.photometric == 0:
        facts["white_is_zero"] = True
    endian = np.dtype(tif.byteorder + stored.str[1:]) if stored.itemsize > 1 else stored
    return TiffSections(
        path=path, shape=shape, dtype=stored.newbyteorder("="), metadata=facts, statements=statements_of_tiff(tif),
        pages=pages, offset=main.dataoffset or 0, stored_dtype=endian, storage=_storage(main.keyframe),
    )  # fmt: skip


def _format(tif: tifffile.TiffFile) -> str:
    if tif.is_ome:
        return "OME-TIFF"
    return "BigTIFF" if tif.is_bigtiff else "TIFF"


def _refuse_colour(path: Path, page: tifffile.TiffPage) -> None:
    """Colour has no meaning in electron microscopy; a grey palette, as Zeiss writes it, is not colour."""
    if page.samplesperpixel > 1 or page.photometric in (2, 5, 6, 8):
        raise InputError(path, f"is a colour image ({page.samplesperpixel} channels)", GREY)
    palette = page.colormap
    if page.photometric == 3 and palette is not None:
        step = 65535 / (palette.shape[1] - 1)
        off = np.abs(palette - np.arange(palette.shape[1]) * step).max(axis=0) > step
        # Zeiss sets some entries aside for its coloured annotations and leaves them out of the image.
        if off.mean() > MAX_ANNOTATION_COLOURS:
            raise InputError(path, "has a colour palette", GREY)


def _stack_shape(path: Path, series: tifffile.TiffPageSeries) -> tuple[int, int, int]:
    """Sections, rows and columns, where one axis at most stacks the sections."""
    if series.is_multifile:
        raise InputError(path, "is one part of an OME-TIFF of several files", "save the stack as one file")
    sizes = {axis: size for axis, size in zip(series.axes, series.shape, strict=True) if size > 1 or axis in "YX"}
    height, width = sizes.pop("Y", 1), sizes.pop("X", 1)
    if len(sizes) > 1 or any(axis not in STACKING_AXES for axis in sizes):
        reason = f"has axes {series.axes} of sizes {series.shape}, more than sections, rows and columns"
        raise InputError(path, reason, "save one channel and one time point as a stack of sections")
    return next(iter(sizes.values()), 1), height, width


def _storage(page: Any) -> tuple[int, ...]:
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    return int(page.compression), page.tiledepth if page.is_tiled else 1, rows, columns


def _check_storage(path: Path, page: tifffile.TiffPage) -> None:
    compression, *piece = _storage(page)
    if compression not in BOUNDED and compression != JPEG:
        name = getattr(page.compression, "name", str(compression))
        mend = "save it uncompressed or with LZW, deflate, Zstandard or JPEG"
        raise InputError(path, f"has the compression {name}, which is not read", mend)
    name = "tiles" if page.is_tiled else "strips"
    check_pieces(path, (page.imagedepth, page.imagelength, page.imagewidth), tuple(piece), name)


def _refuse_large_jpegs(path: Path, series: tifffile.TiffPageSeries) -> None:
    """Hold the size that each JPEG within a TIFF states against that of the page."""
    shape = series.keyframe.imagelength, series.keyframe.imagewidth
    with path.open("rb") as stream:
        for offset in (offset for page in series.pages if page is not None for offset in page.dataoffsets):
            stream.seek(offset)
            check_pieces(path, shape, jpeg_size(path, stream), "JPEG images")


def _page_numbers(path: Path, series: tifffile.TiffPageSeries, depth: int) -> tuple[int, ...]:
    """The page of each section, after a check that each has all its samples within the file."""
    size = path.stat().st_size
    numbers = []
    for page in series.pages:
        if page is None:
            raise InputError(path, "lacks some of its sections", EXPORT_AGAIN)
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if not ends or max(ends) > size or min(page.databytecounts) == 0:
            raise InputError(path, f"section {len(numbers)} is cut off or empty (truncated)", EXPORT_AGAIN)
        numbers.append(int(page.index))
    if len(numbers) != depth:
        raise InputError(path, f"promises {depth} sections and holds {len(numbers)} (truncated)", EXPORT_AGAIN)
    return tuple(numbers)


def _refuse_short(path: Path, end: int) -> None:
    size = path.stat().st_size
    if end > size:
        raise InputError(path, f"needs {end} bytes and has {size} (truncated)", EXPORT_AGAIN)


def _count_directories(path: Path) -> int:
    """Follow the chain of image directories to its end.

    tifffile stops at a broken link and returns the pages before it: a cut-off stack would look like a short one.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        link, entry, count_format, link_format = _chain_layout(path, stream)
        seen = 0
        while link:
            if seen == MAX_SECTIONS:
                raise InputError(path, f"has more than {MAX_SECTIONS} pages or a circular chain of them", EXPORT_AGAIN)
            link = _next_directory(path, stream, size, link, entry, count_format, link_format)
            seen += 1
    if not seen:
        raise InputError(path, "holds no image", EXPORT_AGAIN)
    return seen


def _chain_layout(path: Path, stream: BinaryIO) -> tuple[int, int, str, str]:
    header = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(header[:2])
    version = struct.unpack(order + "H", header[2:4])[0] if order and len(header) >= 8 else 0
    if version == 42:
        return struct.unpack(f"{order}I", header[4:8])[0], 12, f"{order}H", f"{order}I"
    if version == 43 and len(header) == 16:
        return struct.unpack(f"{order}Q", header[8:16])[0], 20, f"{order}Q", f"{order}Q"
    raise InputError(path, "is not a TIFF", "give a multi-page TIFF or a folder of one-slice images")


def _next_directory(path: Path, stream: BinaryIO, size: int, link: int, entry: int, counts: str, links: str) -> int:
    width, link_width = struct.calcsize(counts), struct.calcsize(links)
    stream.seek(link)
    raw = stream.read(width)
    end = link + width + (struct.unpack(counts, raw)[0] * entry if len(raw) == width else size)
    if end + link_width > size:
        raise InputError(path, "its chain of pages breaks off (truncated)", EXPORT_AGAIN)
    stream.seek(end)
    return struct.unpack(links, stream.read(link_width))[0]


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)


def _threads() -> int:
    return max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
