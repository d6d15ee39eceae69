"""Images that are small on disk and large in memory: refused before they are decoded."""

import io
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pytest
import tifffile
import zarr

from cmseg_core.acquisition.jpeg import jpeg_size
from cmseg_core.acquisition.reader import open_source, read_labels
from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize
from cmseg_core.storage.omezarr import open_image

SIZE = VoxelSize(z=10, y=5, x=4)
SECTION = np.random.default_rng(2).integers(0, 256, (64, 64), dtype=np.uint8)
BUDGET = 48 << 20
"""Memory that may be taken; each bomb would take at least `LARGE`."""
LARGE = 128 << 20


@contextmanager
def little_memory() -> Iterator[None]:
    """Holds that what is done within takes less than `BUDGET` at any time, in Python and in the decoders."""
    tracemalloc.start()
    before = resident_peak(reset=True)
    try:
        yield
        resident = resident_peak() - before
        traced = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(traced, resident) < BUDGET


def resident_peak(reset: bool = False) -> int:
    """Bytes, by Linux; elsewhere 0, which leaves it to tracemalloc."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def refuse(path: Path, match: str) -> None:
    with little_memory(), pytest.raises(InputError, match=match) as caught:
        source = open_source(path, SIZE)
        source.read(0, source.shape[0])
    assert "\n" not in str(caught.value)


def packed(size: int) -> bytes:
    """So many zeros as one Zstandard frame: some kilobytes."""
    sink = pa.BufferOutputStream()
    with pa.output_stream(sink, compression="zstd") as stream:
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))
    return sink.getvalue().to_pybytes()


def jpeg(*options: int, side: int | None = None) -> bytes:
    """`SECTION`, with a header that states another side where one is given."""
    data = bytearray(cv2.imencode(".jpg", SECTION, options)[1].tobytes())
    if side is not None:
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[at + 5 : at + 9] = side.to_bytes(2, "big") * 2
    return bytes(data)


def test_the_memory_is_measured():
    with pytest.raises(AssertionError), little_memory():
        np.ones(LARGE, np.uint8)


class TestTiff:
    def test_tile(self, tmp_path):
        tifffile.imwrite(tmp_path / "s.tif", iter([packed(1 << 28)]), shape=(64, 64), dtype="uint8",
                         compression="zstd", tile=(1 << 14, 1 << 14))  # fmt: skip
        assert (tmp_path / "s.tif").stat().st_size < 1 << 16
        refuse(tmp_path / "s.tif", "64 x 64 pixels in tiles of 1 x 16384 x 16384, out of all proportion; export it")
        refuse(tmp_path, "out of all proportion")
        with little_memory(), pytest.raises(InputError, match="out of all proportion"):
            read_labels(tmp_path / "s.tif", (1, 64, 64))

    def test_tile_of_a_later_page(self, tmp_path):
        """tifffile takes all pages of an OME-TIFF to be like its first."""
        path = tmp_path / "s.ome.tif"
        tifffile.imwrite(path, np.stack([SECTION] * 3), ome=True, metadata={"axes": "ZYX"}, compression="zstd",
                         tile=(64, 64))  # fmt: skip
        with tifffile.TiffFile(path, mode="r+") as tif:
            for tag in ("TileWidth", "TileLength"):
                tif.pages[1].aspage().tags[tag].overwrite(1 << 14)
        source = open_source(path, SIZE)
        np.testing.assert_array_equal(source.read(2, 3)[0], SECTION)
        with little_memory(), pytest.raises(InputError, match="section 1 is stored unlike the first"):
            source.read(1, 2)
        with little_memory():
            np.testing.assert_array_equal(source.read(0, 2)[1], SECTION)

    @pytest.mark.parametrize("tile", [None, (64, 64)])
    @pytest.mark.parametrize(
        ("compression", "data"),
        [("deflate", zlib.compress(bytes(LARGE), 1)), ("zstd", packed(LARGE)),
         ("packbits", b"\x81\x00" * (LARGE >> 7))], ids=["deflate", "zstd", "packbits"],
    )  # fmt: skip
    def test_strip_or_tile_that_unpacks_to_more(self, tmp_path, compression, data, tile):
        layout: dict[str, Any] = {"tile": tile} if tile else {"rowsperstrip": 64}
        tifffile.imwrite(tmp_path / "s.tif", iter([data]), shape=(64, 64), dtype="uint8", compression=compression,
                         **layout)  # fmt: skip
        refuse(tmp_path / "s.tif", "cannot be decoded")

    def test_large_jpeg_in_a_small_tile(self, tmp_path):
        tifffile.imwrite(tmp_path / "s.tif", iter([jpeg(side=16000)]), shape=(64, 64), dtype="uint8",
                         compression="jpeg", tile=(64, 64))  # fmt: skip
        refuse(tmp_path / "s.tif", "64 x 64 pixels in JPEG images of 16000 x 16000")

    @pytest.mark.parametrize("compression", ["jpeg2000", "png", "jpegxl", "lerc"])
    def test_compression_with_a_size_of_its_own(self, tmp_path, compression):
        tifffile.imwrite(tmp_path / "s.tif", SECTION, compression=compression)
        refuse(tmp_path / "s.tif", "has the compression .*, which is not read; save it")

    @pytest.mark.parametrize(
        "layout",
        [{"tile": (256, 256)}, {"tile": (512, 512)}, {"tile": (1024, 1024)}, {"tile": (48, 16)}, {"rowsperstrip": 7},
         {"rowsperstrip": 64}], ids=str,
    )  # fmt: skip
    @pytest.mark.parametrize("compression", [None, "deflate", "lzw", "zstd", "packbits", "lzma"])
    def test_ordinary_tiles_and_strips(self, tmp_path, layout, compression):
        volume = np.stack([SECTION, SECTION.T, SECTION[::-1]])
        tifffile.imwrite(tmp_path / "s.tif", volume, photometric="minisblack", compression=compression, **layout)
        np.testing.assert_array_equal(open_source(tmp_path / "s.tif", SIZE).read(0, 3), volume)

    @pytest.mark.parametrize("layout", [{"tile": (256, 256)}, {"rowsperstrip": 16}, {"rowsperstrip": 64}], ids=str)
    def test_jpeg(self, tmp_path, layout):
        tifffile.imwrite(tmp_path / "s.tif", np.stack([SECTION] * 2), photometric="minisblack", compression="jpeg",
                         **layout)  # fmt: skip
        source = open_source(tmp_path / "s.tif", SIZE)
        np.testing.assert_array_equal(source.read(0, 2), tifffile.imread(tmp_path / "s.tif"))


class TestJpegFolder:
    @pytest.mark.parametrize("trick", [b"\xff\x01", b"\xff\xd0", b"\xff\xd7", b"\xff", b"\xff\xff\xff"])
    def test_header_behind_markers_without_a_length(self, tmp_path, trick):
        """Who takes what follows for a length lands in a comment, where a small frame stands."""
        (tmp_path / "1.jpg").write_bytes(jpeg())
        small = b"\xff\xc0\x00\x0b\x08\x00\x40\x00\x40\x01\x01\x11\x00\xff"
        comments = b"\xff\xfe\xff\xff" + (small * 5000)[:65533]
        for shift in range(len(small)):  # one of them lands on the frame
            start = b"\xff\xfe" + (2 + shift).to_bytes(2, "big") + bytes(shift)
            content = b"\xff\xd8" + trick + start + comments * 2 + jpeg(side=16000)[2:]
            (tmp_path / "2.jpg").write_bytes(content)
            assert jpeg_size("2.jpg", io.BytesIO(content)) == (16000, 16000)
            refuse(tmp_path, r"2\.jpg: is 16000 x 16000 uint8, unlike 1\.jpg")

    @pytest.mark.parametrize("trick", [b"", b"\xff\x01\xff\xd3", b"\xff\xff\xff", b"\xff\xfe\x00\x04ab"])
    @pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
    def test_such_markers_are_no_fault(self, tmp_path, trick, options):
        plain = jpeg(*options)
        (tmp_path / "1.jpg").write_bytes(plain[:2] + trick + plain[2:])
        found = open_source(tmp_path, SIZE).read(0, 1)[0]
        np.testing.assert_array_equal(found, cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_UNCHANGED))

    @pytest.mark.parametrize(
        "marker", [b"\xff\x02", b"\xff\xc8", b"\xff\xf7", b"\xff\xd8", b"\xff\xda", b"\xff\xd9", b"x"]
    )
    def test_markers_at_which_the_decoder_gives_up(self, tmp_path, marker):
        plain = jpeg()
        (tmp_path / "1.jpg").write_bytes(plain[:2] + marker + b"\x00\x04ab" + plain[2:])
        refuse(tmp_path, "is damaged; copy or export it again")

    @pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
    def test_file_that_is_replaced_after_it_was_opened(self, tmp_path, options):
        (tmp_path / "1.jpg").write_bytes(jpeg())
        source = open_source(tmp_path, SIZE)
        (tmp_path / "1.jpg").write_bytes(jpeg(*options, side=16000))
        with little_memory(), pytest.raises(InputError, match=r"1\.jpg: has changed"):
            source.read(0, 1)

    def test_png_and_tiff_that_are_replaced(self, tmp_path):
        large = np.zeros((12000, 12000), np.uint8)
        for name in ("1.png", "1.tif"):
            cv2.imwrite(str(tmp_path / name), SECTION)
            source = open_source(tmp_path, SIZE)
            cv2.imwrite(str(tmp_path / name), large)
            with little_memory(), pytest.raises(InputError, match="has changed"):
                source.read(0, 1)
            (tmp_path / name).unlink()


class TestZarr:
    def write(self, root: Path, shape: tuple[int, ...], zarr_format: Literal[2, 3], **options) -> zarr.Array:
        """An image of zeros, all but empty."""
        group = zarr.open_group(root, mode="w", zarr_format=zarr_format)
        axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
        steps = [{"type": "scale", "scale": list(SIZE.zyx)}]
        multiscales = [
            {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
        ]
        old = {"multiscales": multiscales}
        group.attrs.update(old if zarr_format == 2 else {"ome": {"version": "0.5", **old}})
        return group.create_array("0", shape=shape, dtype="uint8", fill_value=0, **options)

    def put(self, root: Path, zarr_format: int, data: bytes) -> None:
        """Replace the first chunk."""
        path = root / "0" / ("0.0.0" if zarr_format == 2 else "c/0/0/0")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize("chunks", [(8, 8192, 8192), (1 << 20, 64, 64), (1 << 10, 1, 1 << 20)])
    def test_chunk(self, tmp_path, chunks, zarr_format):
        compressors = "auto" if zarr_format == 3 else {"id": "zstd", "level": 1}
        self.write(tmp_path / "a", (16, 64, 64), zarr_format, chunks=chunks, compressors=compressors)
        if chunks[0] == 8:
            self.put(tmp_path / "a", zarr_format, packed(8 << 26))
        assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 1 << 16
        with little_memory(), pytest.raises(InputError, match="16 x 64 x 64 pixels in chunks of .* smaller chunks"):
            open_image(tmp_path / "a")[0][:1]

    def test_chunk_within_a_shard(self, tmp_path):
        self.write(tmp_path / "a", (16, 64, 64), 3, chunks=(8, 8192, 8192), shards=(16, 8192, 8192))
        with little_memory(), pytest.raises(InputError, match="in chunks of 8 x 8192 x 8192"):
            open_image(tmp_path / "a")

    @pytest.mark.parametrize(
        ("zarr_format", "codec", "data"),
        [(2, {"id": "zstd", "level": 1}, packed(LARGE)),
         (2, {"id": "zlib", "level": 1}, zlib.compress(bytes(LARGE), 1)),
         (3, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}, packed(LARGE)),
         (3, {"name": "gzip", "configuration": {"level": 1}}, zlib.compress(bytes(LARGE), 1, 31))],
        ids=["zstd 2", "zlib 2", "zstd 3", "gzip 3"],
    )  # fmt: skip
    def test_chunk_that_unpacks_to_more(self, tmp_path, zarr_format, codec, data):
        self.write(tmp_path / "a", (16, 64, 64), zarr_format, chunks=(8, 64, 64), compressors=codec)
        self.put(tmp_path / "a", zarr_format, data)
        array, _ = open_image(tmp_path / "a")
        assert not array[8:].any()
        with little_memory(), pytest.raises(InputError, match="a: cannot be decoded .*unpacks to more than it should"):
            array[:1]

    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize("chunks", [(64,) * 3, (256,) * 3, (1, 64, 64), (16, 32, 48)])
    def test_ordinary_chunks(self, tmp_path, chunks, zarr_format):
        volume = np.random.default_rng(0).integers(0, 256, (30, 50, 50), dtype=np.uint8)
        self.write(tmp_path / "a", volume.shape, zarr_format, chunks=chunks)[:] = volume
        array, _ = open_image(tmp_path / "a")
        np.testing.assert_array_equal(array[3:20], volume[3:20])

    @pytest.mark.parametrize("shards", [(64,) * 3, (256,) * 3, (1024,) * 3])
    def test_ordinary_shards(self, tmp_path, shards):
        volume = np.random.default_rng(0).integers(0, 256, (30, 50, 50), dtype=np.uint8)
        self.write(tmp_path / "a", volume.shape, 3, chunks=(32,) * 3, shards=shards)[:] = volume
        array, _ = open_image(tmp_path / "a")
        np.testing.assert_array_equal(array[3:20], volume[3:20])
