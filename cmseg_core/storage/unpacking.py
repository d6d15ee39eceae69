"""Reading Zarr arrays of others: no chunk unpacks to more than its array declares.

zarr lets a codec unpack whatever is in a chunk and looks at the size afterwards: some kilobytes could fill the memory.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import imagecodecs
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import ShardingCodec

from cmseg_core.errors import InputError

UNPACK: dict[str, Callable[..., bytes | bytearray]] = {
    "blosc": imagecodecs.blosc_decode,
    "bz2": imagecodecs.bz2_decode,
    "gzip": imagecodecs.gzip_decode,
    "lz4": partial(imagecodecs.lz4_decode, header=True),
    "lzma": imagecodecs.lzma_decode,
    "zlib": imagecodecs.zlib_decode,
    "zstd": imagecodecs.zstd_decode,
}
"""Decoders that stop at a given size, by the names that Zarr has for them."""
PLAIN = frozenset(
    "bytes transpose crc32c crc32 adler32 fletcher32 bitround delta fixedscaleoffset quantize shuffle".split()
)
"""Codecs that leave the size of a chunk more or less as it is."""
SPARE_BYTES = 4096


def bounded(source: object, array: zarr.Array) -> zarr.Array:
    """The same array, for reading only, with codecs that refuse to unpack more than about a chunk.

    Parameters
    ----------
    source : object
        Name for messages.
    array : zarr.Array

    Returns
    -------
    zarr.Array
        Reading from it raises ValueError where a chunk is damaged or too large.

    Raises
    ------
    InputError
        Where the array has codecs that cannot be bounded.
    """
    # Twice a chunk: some filters widen its numbers, checksums are added to it.
    room = 2 * math.prod(array.chunks) * array.dtype.itemsize + SPARE_BYTES
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        compressor = metadata.compressor and _numcodec(source, metadata.compressor, room)
        filters = metadata.filters and tuple(_numcodec(source, codec, room) for codec in metadata.filters)
        metadata = replace(metadata, compressor=compressor, filters=filters)
    else:
        metadata = replace(metadata, codecs=tuple(_codec(source, codec, room) for codec in metadata.codecs))
    return zarr.Array(zarr.AsyncArray(metadata, array.store_path))


def _codec(source: object, codec: Any, room: int) -> Any:
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(_codec(source, inner, room) for inner in codec.codecs))
    name = codec.to_dict()["name"].removeprefix("numcodecs.")
    return Bounded(name, room) if _packs(source, name) else codec


def _numcodec(source: object, codec: Any, room: int) -> Any:
    return BoundedNumcodec(codec.codec_id, room) if _packs(source, codec.codec_id) else codec


def _packs(source: object, name: str) -> bool:
    """Whether a codec is a compressor that is known; one that is neither known nor plain is refused."""
    if name not in UNPACK and name not in PLAIN:
        mend = f"write it with one of {', '.join(UNPACK)}"
        raise InputError(source, f"has chunks with the codec {name}, which is not read", mend)
    return name in UNPACK


def _unpack(name: str, data: Any, room: int) -> bytes | bytearray:
    try:
        return UNPACK[name](data, out=room)
    except RuntimeError as error:  # each decoder raises a kind of its own
        raise ValueError(f"a chunk is damaged or unpacks to more than it should: {error}") from error


@dataclass(frozen=True)
class Bounded(BytesBytesCodec):
    """A compressor of Zarr 3 that only unpacks, to at most `room` bytes."""

    name: str
    room: int
    is_fixed_size = False

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        data = await asyncio.to_thread(_unpack, self.name, chunk_data.as_numpy_array(), self.room)
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Is part of zarr's interface: the size is not fixed."""
        raise NotImplementedError


class BoundedNumcodec:
    """A compressor of Zarr 2 that only unpacks, to at most `room` bytes."""

    codec_id = "bounded"

    def __init__(self, name: str, room: int) -> None:
        self.name = name
        self.room = room

    def decode(self, buf: Any, out: Any = None) -> bytes | bytearray:
        """Unpack a chunk."""
        return _unpack(self.name, buf, self.room)

    def encode(self, buf: Any) -> Any:
        """Is part of zarr's interface, and never asked for."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """As zarr's interface has it."""
        return {"id": self.codec_id, "name": self.name, "room": self.room}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BoundedNumcodec:
        """As zarr's interface has it."""
        return cls(config["name"], config["room"])
