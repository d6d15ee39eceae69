"""Others' Zarr arrays read the same with codecs that are bounded."""

from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from cmseg_core.errors import InputError
from cmseg_core.storage.unpacking import bounded

VOLUME = np.random.default_rng(0).integers(0, 50, (30, 50, 50))
BLOSC: list[tuple[Any, int]] = [("blosclz", 0), ("lz4", 1), ("lz4hc", 2), ("zlib", 1), ("zstd", 2)]


def check(array: zarr.Array) -> None:
    volume = VOLUME.astype(array.dtype)
    array[:] = volume
    found = bounded("a", array)
    assert (found.shape, found.dtype, found.chunks) == (array.shape, array.dtype, array.chunks)
    for selection in (slice(None), slice(3, 20), (2, slice(None), 1)):
        np.testing.assert_array_equal(found[selection], volume[selection])


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "float32"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "codec",
    [None, *({"id": name} for name in ("zstd", "gzip", "zlib", "lz4", "bz2", "lzma")),
     *({"id": "blosc", "cname": name, "shuffle": shuffle} for name, shuffle in BLOSC)], ids=str,
)  # fmt: skip
def test_zarr_2(tmp_path, codec, order, dtype):
    check(zarr.create_array(tmp_path, shape=VOLUME.shape, dtype=dtype, chunks=(16, 32, 32), zarr_format=2,
                            compressors=codec, order=order))  # fmt: skip


def test_filters_of_zarr_2(tmp_path):
    filters = [numcodecs.Delta("<u2"), numcodecs.Shuffle(2)]
    check(zarr.create_array(tmp_path, shape=VOLUME.shape, dtype="uint16", chunks=(16, 32, 32), zarr_format=2,
                            compressors={"id": "zstd"}, filters=filters))  # fmt: skip


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shards", [None, (32, 64, 64), (512, 512, 512)])
@pytest.mark.parametrize(
    "codecs",
    [(), (ZstdCodec(level=3),), (GzipCodec(),), *((BloscCodec(cname=name),) for name, _ in BLOSC),
     (ZstdCodec(checksum=True), Crc32cCodec())], ids=["none", "zstd", "gzip", *(name for name, _ in BLOSC), "two"],
)  # fmt: skip
def test_zarr_3(tmp_path, codecs, shards, dtype):
    check(zarr.create_array(tmp_path, shape=VOLUME.shape, dtype=dtype, chunks=(16, 32, 32), shards=shards,
                            compressors=codecs))  # fmt: skip


def test_order_and_nested_shards_of_zarr_3(tmp_path):
    check(zarr.create_array(tmp_path / "a", shape=VOLUME.shape, dtype="uint8", chunks=(16, 32, 32),
                            filters=[TransposeCodec(order=(2, 1, 0))]))  # fmt: skip
    inner = ShardingCodec(chunk_shape=(16, 16, 16), codecs=[BytesCodec(), ZstdCodec()])
    check(zarr.create_array(tmp_path / "b", shape=VOLUME.shape, dtype="uint8", chunks=(64, 64, 64), compressors=None,
                            serializer=ShardingCodec(chunk_shape=(32, 32, 32), codecs=[inner])))  # fmt: skip


def test_codec_that_cannot_be_bounded(tmp_path):
    filters = [numcodecs.PackBits()]
    array = zarr.create_array(tmp_path, shape=(4, 5, 6), dtype="bool", zarr_format=2, filters=filters)
    with pytest.raises(InputError, match="a: has chunks with the codec packbits, which is not read; write it with"):
        bounded("a", array)
