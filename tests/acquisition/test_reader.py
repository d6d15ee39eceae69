import json
import struct

import cv2
import numpy as np
import pytest
import tifffile

from cmseg_core.acquisition import source as source_module
from cmseg_core.acquisition.folder import natural_key, numbering
from cmseg_core.acquisition.reader import open_source, read_labels
from cmseg_core.acquisition.source import ArraySections, SectionSource
from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize

SIZE = VoxelSize(z=10, y=5, x=4)


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (7, 20, 31), dtype=np.uint8)


def write_imagej(path, volume, size=SIZE, **options):
    tifffile.imwrite(
        path, volume, imagej=True, resolution=(1000 / size.x, 1000 / size.y),
        metadata={"axes": "ZYX", "spacing": size.z / 1000, "unit": "um"}, **options,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bigtiff": True}, {"byteorder": ">"}, {"compression": "lzw", "predictor": True}, {"compression": "zlib"},
     {"tile": (16, 16)}],
    ids=str,
)  # fmt: skip
def test_every_kind_of_tiff_reads_in_any_slabs(tmp_path, volume, dtype, options):
    volume = volume.astype(dtype)
    path = tmp_path / "stack.tif"
    if dtype == "float32" and options.get("predictor"):
        options = {**options, "predictor": 3}
    tifffile.imwrite(path, volume, photometric="minisblack", **options)
    source = open_source(path, SIZE)
    assert (source.shape, source.dtype, source.nbytes) == (volume.shape, volume.dtype, volume.nbytes)
    assert source.files == (path,)
    for start, stop in [(0, 7), (2, 3), (3, 7), (4, 4)]:
        slab = source.read(start, stop)
        assert slab.dtype == volume.dtype and slab.dtype.isnative
        np.testing.assert_array_equal(slab, volume[start:stop])
    streamed = list(source.slabs(budget=3 * 20 * 31 * volume.itemsize))
    assert [start for start, _ in streamed] == [0, 3, 6]
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in streamed]), volume)


def test_reading_beyond_the_stack_is_an_error(tmp_path, volume):
    tifffile.imwrite(tmp_path / "s.tif", volume, photometric="minisblack")
    with pytest.raises(IndexError):
        open_source(tmp_path / "s.tif", SIZE).read(3, 8)


def test_a_single_section_is_a_stack_of_one(tmp_path, volume):
    tifffile.imwrite(tmp_path / "s.tif", volume[0])
    np.testing.assert_array_equal(open_source(tmp_path / "s.tif", SIZE).read(0, 1), volume[:1])


class TestVoxelSize:
    def test_imagej(self, tmp_path, volume):
        write_imagej(tmp_path / "s.tif", volume)
        source = open_source(tmp_path / "s.tif")
        assert source.voxel_size == SIZE
        assert source.metadata["voxel_size_from"] == "ImageJ metadata"

    @pytest.mark.parametrize("unit", ["pixel", ""])
    def test_imagej_without_a_unit_is_not_a_voxel_size(self, tmp_path, volume, unit):
        tifffile.imwrite(tmp_path / "s.tif", volume, imagej=True, resolution=(1, 1),
                         metadata={"axes": "ZYX", "spacing": 1.0, "unit": unit})  # fmt: skip
        with pytest.raises(InputError, match="--voxel-size Z Y X in nm"):
            open_source(tmp_path / "s.tif")

    def test_print_resolution_is_not_a_voxel_size(self, tmp_path, volume):
        tifffile.imwrite(tmp_path / "s.tif", volume, photometric="minisblack", resolution=(300, 300), resolutionunit=2)
        with pytest.raises(InputError, match="states no voxel size"):
            open_source(tmp_path / "s.tif")

    @pytest.mark.parametrize(("unit", "factor"), [("nm", 1), ("\u00b5m", 1e-3), ("\u00c5", 10)])
    def test_ome(self, tmp_path, volume, unit, factor):
        sizes = {f"PhysicalSize{a}": getattr(SIZE, a.lower()) * factor for a in "ZYX"}
        units = {f"PhysicalSize{a}Unit": unit for a in "ZYX"}
        tifffile.imwrite(tmp_path / "s.ome.tif", volume, ome=True, metadata={"axes": "ZYX", **sizes, **units})
        source = open_source(tmp_path / "s.ome.tif")
        assert source.voxel_size.zyx == pytest.approx(SIZE.zyx)
        assert source.metadata["format"] == "OME-TIFF"

    def test_sidecar(self, tmp_path, volume):
        tifffile.imwrite(tmp_path / "stack.tif", volume, photometric="minisblack")
        (tmp_path / "acquisition.json").write_text(json.dumps({"voxel_size": {"z": 10, "y": 5, "x": 4}}))
        assert open_source(tmp_path / "stack.tif").voxel_size == SIZE

    def test_sidecar_of_another_stack_is_ignored(self, tmp_path, volume):
        tifffile.imwrite(tmp_path / "stack.tif", volume, photometric="minisblack")
        content = {"voxel_size": {"z": 10, "y": 5, "x": 4}, "source": "other.tif"}
        (tmp_path / "acquisition.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="states no voxel size"):
            open_source(tmp_path / "stack.tif")

    @pytest.mark.parametrize("content", ["{", "[]", '{"voxel_size": {"z": 0, "y": 5, "x": 4}}'])
    def test_broken_sidecar(self, tmp_path, volume, content):
        tifffile.imwrite(tmp_path / "stack.tif", volume, photometric="minisblack")
        (tmp_path / "acquisition.json").write_text(content)
        with pytest.raises(InputError, match="acquisition.json: does not hold a voxel size"):
            open_source(tmp_path / "stack.tif")

    def test_contradiction_is_an_error_and_the_argument_settles_it(self, tmp_path, volume):
        write_imagej(tmp_path / "stack.tif", volume)
        (tmp_path / "acquisition.json").write_text(json.dumps({"voxel_size": {"z": 20, "y": 5, "x": 4}}))
        with pytest.raises(InputError, match="contradictory voxel sizes: z 10 nm by ImageJ metadata, 20 nm by acq"):
            open_source(tmp_path / "stack.tif")
        source = open_source(tmp_path / "stack.tif", VoxelSize(z=1, y=2, x=3))
        assert source.voxel_size.zyx == (1, 2, 3)
        assert source.metadata["voxel_size_stated"][0]["z"] == 10


class TestVendorFiles:
    @pytest.mark.parametrize(
        ("name", "pixel"),
        [("FEI-Helios-Ebeam-8bits.tif", 3372.4), ("FEI-Helios-Ebeam-16bits.tif", 3372.4),
         ("ZEISS_SEM_multipage.tif", 12.33), ("test_tiff_Zeiss_SEM_1k.tif", 2615.0),
         ("test_tiff_Zeiss_SEM_512pix.tif", 11.65)],
    )  # fmt: skip
    def test_pixel_size_is_known_and_the_section_distance_asked_for(self, real_data, name, pixel):
        path = real_data(f"vendor_tiff_samples/{name}")
        with pytest.raises(InputError, match=f"give --voxel-size Z {pixel:g} {pixel:g} in nm"):
            open_source(path)
        source = open_source(path, SIZE)
        assert source.metadata["voxel_size_stated"][0]["x"] == pytest.approx(pixel)
        np.testing.assert_array_equal(source.read(0, source.shape[0]).squeeze(), tifffile.imread(path))

    @pytest.mark.parametrize("name", ["FEI-Helios-navcam-with-no-IRBeam-bad-floats.tif", "TVIPS_bin4.tif"])
    def test_no_usable_tag(self, real_data, name):
        with pytest.raises(InputError, match="states no voxel size"):
            open_source(real_data(f"vendor_tiff_samples/{name}"))

    def test_real_stack(self, real_data):
        path = real_data("flyem_medulla/ts1_raw.tif")
        source = open_source(path)
        assert source.voxel_size.zyx == (10, 10, 10)
        np.testing.assert_array_equal(source.read(101, 105), tifffile.imread(path, key=range(101, 105)))

    def test_real_stack_without_voxel_size(self, real_data):
        with pytest.raises(InputError, match="states no voxel size"):
            open_source(real_data("gala_mini/train_raw.tif"))


class TestRefused:
    def refuse(self, path, match, size=SIZE):
        with pytest.raises(InputError, match=match) as caught:
            source = open_source(path, size)
            source.read(0, source.shape[0])
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path):
        self.refuse(tmp_path / "none.tif", "does not exist")

    def test_empty_file(self, tmp_path):
        (tmp_path / "s.tif").touch()
        self.refuse(tmp_path / "s.tif", "is empty")

    def test_not_a_tiff(self, tmp_path):
        (tmp_path / "s.tif").write_bytes(b"%PDF-1.4 something else altogether")
        self.refuse(tmp_path / "s.tif", "is not a TIFF")

    def test_colour(self, tmp_path):
        tifffile.imwrite(tmp_path / "s.tif", np.zeros((4, 16, 16, 3), np.uint8), photometric="rgb")
        self.refuse(tmp_path / "s.tif", "colour image")

    def test_colour_palette(self, tmp_path, volume):
        palette = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "s.tif", volume, photometric="palette", colormap=palette)
        self.refuse(tmp_path / "s.tif", "colour palette")

    def test_several_channels(self, tmp_path):
        tifffile.imwrite(tmp_path / "s.tif", np.zeros((4, 2, 16, 16), np.uint8), imagej=True, metadata={"axes": "ZCYX"})
        self.refuse(tmp_path / "s.tif", "has axes ZCYX")

    @pytest.mark.parametrize("dtype", ["float64", "uint32", "int8", "complex64"])
    def test_sample_type(self, tmp_path, volume, dtype):
        tifffile.imwrite(tmp_path / "s.tif", volume.astype(dtype), photometric="minisblack")
        self.refuse(tmp_path / "s.tif", f"has samples of type {dtype}")

    def test_unequal_pages(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
            writer.write(np.zeros((8, 8), np.uint8))
            writer.write(np.zeros((8, 9), np.uint8))
        self.refuse(tmp_path / "s.tif", "pages differ in size")

    @pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"imagej": True}, {"bigtiff": True}], ids=str)
    def test_cut_off_anywhere_is_refused_or_lacks_no_sample(self, tmp_path, volume, options):
        whole, cut = tmp_path / "whole.tif", tmp_path / "cut.tif"
        photometric = {} if "imagej" in options else {"photometric": "minisblack"}
        tifffile.imwrite(whole, volume, **options, **photometric)
        content = whole.read_bytes()
        refused = 0
        for length in [*range(1, len(content), 97), *range(len(content) - 60, len(content))]:
            cut.write_bytes(content[:length])
            try:
                source = open_source(cut, SIZE)
                np.testing.assert_array_equal(source.read(0, source.shape[0]), volume)
            except InputError:
                refused += 1
        # What may be lacking are the last bytes, where the values of descriptive tags stand.
        assert refused > 0.9 * (len(content) / 97)

    def test_damaged_compressed_samples(self, tmp_path, volume):
        path = tmp_path / "s.tif"
        tifffile.imwrite(path, volume, compression="zlib", photometric="minisblack")
        with tifffile.TiffFile(path) as tif:
            offset = tif.pages[3].dataoffsets[0]
        content = bytearray(path.read_bytes())
        content[offset : offset + 40] = bytes(40)
        path.write_bytes(content)
        self.refuse(path, "cannot be decoded")

    def test_circular_chain_of_pages(self, tmp_path, volume, monkeypatch):
        monkeypatch.setattr("cmseg_core.acquisition.tiff.MAX_SECTIONS", 50)
        path = tmp_path / "s.tif"
        tifffile.imwrite(path, volume[0])
        content = bytearray(path.read_bytes())
        first = struct.unpack("<I", content[4:8])[0]
        end = first + 2 + 12 * struct.unpack("<H", content[first : first + 2])[0]
        content[end : end + 4] = struct.pack("<I", first)
        path.write_bytes(content)
        self.refuse(path, "circular chain")

    def test_image_bomb_is_refused_by_its_header(self, tmp_path, volume, monkeypatch):
        monkeypatch.setattr(source_module, "MAX_SECTION_PIXELS", 20 * 31 - 1)
        tifffile.imwrite(tmp_path / "s.tif", volume, photometric="minisblack")
        self.refuse(tmp_path / "s.tif", "the limits are")

    def test_png_bomb(self, tmp_path):
        header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 8, 0, 0, 0, 0)
        (tmp_path / "a.png").write_bytes(header + bytes(4) + bytes(4) + b"IEND\xae\x42\x60\x82")
        self.refuse(tmp_path, "the limits are")

    def test_zarr_store(self, tmp_path):
        (tmp_path / "zarr.json").write_text("{}")
        self.refuse(tmp_path, "is a Zarr store")


class TestFolder:
    @pytest.mark.parametrize(
        ("suffix", "dtype"), [(".png", "uint8"), (".png", "uint16"), (".tif", "float32"), (".TIF", "uint8")]
    )
    def test_sections_in_natural_order(self, tmp_path, volume, suffix, dtype):
        volume = volume.astype(dtype)
        for z, section in enumerate(volume):
            path = tmp_path / f"slice{z + 5}{suffix}"
            if suffix == ".png":
                cv2.imwrite(str(path), section)
            else:
                tifffile.imwrite(path, section)
        (tmp_path / "notes.txt").write_text("not an image")
        (tmp_path / ".hidden.png").write_bytes(b"")
        source = open_source(tmp_path, SIZE)
        assert source.dtype == volume.dtype
        assert [f.stem for f in source.files] == [f"slice{z + 5}" for z in range(7)]
        np.testing.assert_array_equal(source.read(1, 6), volume[1:6])
        assert source.metadata["missing_sections"] == []

    def test_jpeg(self, tmp_path, volume):
        for z in range(3):
            cv2.imwrite(str(tmp_path / f"{z}.jpg"), volume[z])
        source = open_source(tmp_path, SIZE)
        assert source.metadata["lossy"] is True
        np.testing.assert_array_equal(source.read(2, 3)[0], cv2.imread(str(tmp_path / "2.jpg"), cv2.IMREAD_UNCHANGED))

    def test_voxel_size_of_the_first_slice_and_of_the_sidecar(self, tmp_path, volume):
        for z in range(3):
            tifffile.imwrite(tmp_path / f"{z}.tif", volume[z])
        with pytest.raises(InputError, match="states no voxel size"):
            open_source(tmp_path)
        (tmp_path / "acquisition.json").write_text(json.dumps({"voxel_size": {"z": 10, "y": 5, "x": 4}}))
        assert open_source(tmp_path).voxel_size == SIZE

    def test_gap_in_the_numbers(self, tmp_path, volume):
        for z in (0, 1, 2, 4, 5, 7):
            cv2.imwrite(str(tmp_path / f"run12_s{z:04d}.png"), volume[0])
        assert open_source(tmp_path, SIZE).metadata["missing_sections"] == [3, 6]

    def test_slice_of_another_size_is_named(self, tmp_path, volume):
        cv2.imwrite(str(tmp_path / "1.png"), volume[0])
        cv2.imwrite(str(tmp_path / "2.png"), volume[0, 1:])
        with pytest.raises(InputError, match=r"2\.png: is 19 x 31 uint8, unlike 1\.png with 20 x 31"):
            open_source(tmp_path, SIZE)

    def test_empty(self, tmp_path):
        with pytest.raises(InputError, match="holds no TIFF, PNG or JPEG"):
            open_source(tmp_path, SIZE)

    def test_several_kinds(self, tmp_path, volume):
        cv2.imwrite(str(tmp_path / "1.png"), volume[0])
        tifffile.imwrite(tmp_path / "2.tif", volume[0])
        with pytest.raises(InputError, match="holds PNG and TIFF images"):
            open_source(tmp_path, SIZE)

    def test_stack_among_slices(self, tmp_path, volume):
        tifffile.imwrite(tmp_path / "stack.tif", volume, photometric="minisblack")
        with pytest.raises(InputError, match="give the path of the stack itself"):
            open_source(tmp_path, SIZE)

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_colour(self, tmp_path, suffix):
        cv2.imwrite(str(tmp_path / f"1{suffix}"), np.zeros((16, 16, 3), np.uint8))
        with pytest.raises(InputError, match="is a colour"):
            open_source(tmp_path, SIZE)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
    @pytest.mark.parametrize("share", [0.9, 0.4, 0.01])
    def test_cut_off(self, tmp_path, volume, suffix, share):
        path = tmp_path / f"1{suffix}"
        cv2.imwrite(str(path), volume[0])
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(InputError, match="truncated|is not a|not a readable|is empty"):
            open_source(tmp_path, SIZE)

    def test_natural_order(self, tmp_path):
        names = ["a10", "a2", "a1b3", "a01", "b", "10", "9"]
        assert sorted((tmp_path / n for n in names), key=natural_key) == [
            tmp_path / n for n in ["9", "10", "a01", "a1b3", "a2", "a10", "b"]
        ]

    @pytest.mark.parametrize(
        ("stems", "missing"),
        [(["1", "2", "3"], []), (["1", "3", "4"], [2]), (["0", "5", "10", "20"], [15]), (["a", "b"], []), (["7"], []),
         (["s1_t100", "s2_t911", "s4_t2000"], [3]), (["t1000", "t5013", "t9201"], []), (["1", "a"], [])],
    )  # fmt: skip
    def test_numbering(self, stems, missing):
        assert numbering(stems)["missing_sections"] == missing


class TestHash:
    def test_follows_content_alone(self, tmp_path, volume):
        for name in ("a.tif", "b.tif"):
            write_imagej(tmp_path / name, volume)
        write_imagej(tmp_path / "c.tif", volume ^ 1)
        a, b, c = (open_source(tmp_path / n).sha256() for n in ("a.tif", "b.tif", "c.tif"))
        assert a == b != c

    def test_of_a_folder_knows_names_and_order(self, tmp_path, volume):
        hashes = []
        for folder, names in [("a", "12"), ("b", "21"), ("c", "13"), ("d", "12")]:
            (tmp_path / folder).mkdir()
            for name, section in zip(names, volume[:2], strict=True):
                cv2.imwrite(str(tmp_path / folder / f"{name}.png"), section)
            hashes.append(open_source(tmp_path / folder, SIZE).sha256())
        assert hashes[0] == hashes[3] and len(set(hashes)) == 3

    def test_of_an_array_knows_shape_and_content(self, volume):
        def hashed(array):
            return SectionSource(ArraySections(array), SIZE).sha256()

        assert hashed(volume) == hashed(volume.copy())
        assert (
            len(
                {
                    hashed(volume),
                    hashed(volume ^ 1),
                    hashed(volume.transpose(0, 2, 1)),
                    hashed(volume.view("i1").astype("i2")),
                }
            )
            == 4
        )


class TestLabels:
    @pytest.mark.parametrize(
        ("dtype", "read"), [("uint8", "uint8"), ("uint16", "uint16"), ("uint32", "uint32"), ("int16", "uint16")]
    )
    def test_round_trip(self, tmp_path, dtype, read):
        labels = np.random.default_rng(0).integers(0, 100, (4, 8, 9)).astype(dtype)
        tifffile.imwrite(tmp_path / "l.tif", labels, photometric="minisblack")
        found = read_labels(tmp_path / "l.tif", (4, 8, 9))
        assert found.dtype == np.dtype(read)
        np.testing.assert_array_equal(found, labels)

    @pytest.mark.parametrize(
        ("labels", "match"),
        [(np.zeros((4, 8, 9), np.uint8), "has shape"), (np.full((4, 8, 8), -1, np.int16), "negative"),
         (np.zeros((4, 8, 8), np.float32), "samples of type float32")],
    )  # fmt: skip
    def test_refused(self, tmp_path, labels, match):
        tifffile.imwrite(tmp_path / "l.tif", labels, photometric="minisblack")
        with pytest.raises(InputError, match=match):
            read_labels(tmp_path / "l.tif", (4, 8, 8))

    def test_real(self, real_data):
        path = real_data("gala_mini/test_labels.tif")
        np.testing.assert_array_equal(read_labels(path, (50, 100, 200)), tifffile.imread(path))
