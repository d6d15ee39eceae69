"""The size of a JPEG image, found the way the decoder finds it."""

from __future__ import annotations

import struct
from typing import BinaryIO

from cmseg_core.acquisition.source import EXPORT_AGAIN, GREY
from cmseg_core.errors import InputError

FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA))
"""Markers of the frames that the decoder knows."""
SKIPPED = frozenset((0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)))
"""Markers of segments that may stand before the frame: tables, comments, what applications add."""
BARE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers that neither a length nor a segment follows: TEM and RST0 to RST7."""


def jpeg_size(subject: object, stream: BinaryIO) -> tuple[int, int]:
    """Rows and columns of the 8-bit grey JPEG that begins here, from its frame header.

    Parameters
    ----------
    subject : object
        Name for messages.
    stream : binary file
        Is read up to the end of the frame header.

    Raises
    ------
    InputError
        Where it is no JPEG, breaks off, is coloured or has not 8 bits a sample.
    """
    if stream.read(2) != b"\xff\xd8":
        raise InputError(subject, "is not a JPEG image", EXPORT_AGAIN)
    # At any other marker the decoder gives up: skipping it could lead to another frame than the decoder's.
    while (code := _marker(stream)) in FRAMES | SKIPPED | BARE:
        content = b"" if code in BARE else _segment(stream)
        if code in FRAMES:
            if len(content) < 6:
                break
            bits, height, width, channels = struct.unpack(">BHHB", content[:6])
            if channels != 1:
                raise InputError(subject, f"is a colour image ({channels} channels)", GREY)
            if bits != 8:
                raise InputError(subject, f"has {bits} bits a sample", "convert it to 8 bits")
            return height, width
    raise InputError(subject, "ends before its image (truncated) or is damaged", EXPORT_AGAIN)


def _marker(stream: BinaryIO) -> int:
    """The next marker, which any number of fill bytes may precede; 0 where there is none."""
    if stream.read(1) != b"\xff":
        return 0
    while (byte := stream.read(1)) == b"\xff":
        pass
    return byte[0] if byte else 0


def _segment(stream: BinaryIO) -> bytes:
    """What follows a marker, without its length."""
    length = stream.read(2)
    return stream.read(max(0, int.from_bytes(length, "big") - 2))
