"""OME-Zarr: valid for others' readers, true to the voxel size, and the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaozarrs
import zarr

from cmseg_core.errors import InputError
from cmseg_core.schema import VoxelSize
from cmseg_core.storage import omezarr
from cmseg_core.storage.store import Store

VOXEL = VoxelSize(z=8, y=4, x=5)
SHAPE = (70, 301, 140)


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return (np.indices(SHAPE).sum(0) // 90).astype(np.uint32)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, volume: np.ndarray, labels: np.ndarray) -> Path:
    return _write(tmp_path_factory.mktemp("image") / "volume.ome.zarr", volume, labels)


def test_it_is_valid_ome_zarr(image: Path) -> None:
    yaozarrs.validate_zarr_store(str(image))
    assert json.loads((image / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"] == [
        "cells",
        "organelles",
    ]
    for path in (image, image / "labels", image / "labels" / "cells"):
        yaozarrs.validate_ome_json(json.dumps(json.loads((path / "zarr.json").read_text())["attributes"]["ome"]))


def test_the_finest_level_is_the_volume(image: Path, volume: np.ndarray, labels: np.ndarray) -> None:
    array, voxel_size = omezarr.open_image(image)
    assert voxel_size == VOXEL
    np.testing.assert_array_equal(array[:], volume)
    array, voxel_size = omezarr.open_image(image / "labels" / "cells")
    assert (array.dtype, voxel_size) == (np.uint32, VOXEL)
    np.testing.assert_array_equal(array[:], labels)


def test_levels_halve_until_they_are_small(image: Path) -> None:
    shapes = [zarr.open_array(image / str(level), mode="r").shape for level in range(3)]
    assert shapes == [(70, 301, 140), (35, 151, 70), (35, 76, 35)]
    assert not (image / "3").exists()


def test_images_are_averaged(image: Path, volume: np.ndarray) -> None:
    level = zarr.open_array(image / "1", mode="r")[:]
    expected = volume[:, :300].reshape(35, 2, 150, 2, 70, 2).astype(float).mean((1, 3, 5))
    assert np.abs(level[:, :150] - expected).max() <= 0.5
    # The last row has no partner and is averaged alone.
    expected = volume[:, 300].reshape(35, 2, 70, 2).astype(float).mean((1, 3))
    assert np.abs(level[:, 150] - expected).max() <= 0.5


def test_labels_are_never_mixed(image: Path, labels: np.ndarray) -> None:
    np.testing.assert_array_equal(zarr.open_array(image / "labels/cells/1", mode="r")[:], labels[::2, ::2, ::2])
    np.testing.assert_array_equal(zarr.open_array(image / "labels/cells/2", mode="r")[:], labels[::2, ::4, ::4])


def test_every_level_covers_the_same_place(image: Path) -> None:
    multiscale = json.loads((image / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    assert [(axis["name"], axis["unit"]) for axis in multiscale["axes"]] == [(a, "nanometer") for a in "zyx"]
    steps = [{s["type"]: s[s["type"]] for s in d["coordinateTransformations"]} for d in multiscale["datasets"]]
    assert [step["scale"] for step in steps] == [[8, 4, 5], [16, 8, 10], [16, 16, 20]]
    assert [step.get("translation") for step in steps] == [None, [4, 2, 2.5], [4, 6, 7.5]]


def test_labels_name_their_source_and_colours(image: Path) -> None:
    ome = json.loads((image / "labels/organelles/zarr.json").read_text())["attributes"]["ome"]
    assert ome["image-label"] == {
        "source": {"image": "../../"},
        "colors": [{"label-value": 1, "rgba": [255, 255, 255, 255]}, {"label-value": 2, "rgba": [44, 160, 44, 255]}],
    }


def test_the_same_input_gives_the_same_bytes(
    image: Path, tmp_path: Path, volume: np.ndarray, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1}):
        again = _write(tmp_path / "other name.zarr", volume, labels)
    names = sorted(path.relative_to(image) for path in image.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert [name for name in names if (image / name).read_bytes() != (again / name).read_bytes()] == []


def test_sections_are_asked_for_once_and_in_order(tmp_path: Path) -> None:
    asked = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return np.zeros((stop - start, 300, 10), np.uint8)

    omezarr.write_image(tmp_path / "a.zarr", read, (150, 300, 10), np.uint8, VOXEL, "a")
    assert asked == [(0, 64), (64, 128), (128, 150)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 1), (129, 2, 3), (65, 129, 257)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_odd_shapes_and_types(tmp_path: Path, shape: tuple[int, int, int], dtype: type) -> None:
    volume = (np.random.default_rng(1).random(shape) * 255).astype(dtype)
    root = tmp_path / "a.zarr"
    omezarr.write_image(root, lambda a, b: volume[a:b], shape, dtype, VOXEL, "a")
    yaozarrs.validate_zarr_store(str(root))
    factors = omezarr.level_factors(shape)
    coarse = zarr.open_array(root / str(len(factors) - 1), mode="r")
    assert max(coarse.shape) <= omezarr.COARSEST
    assert (coarse.dtype, coarse.shape) == (np.dtype(dtype), omezarr.coarse_shape(shape, factors[-1]))
    assert volume.min() <= coarse[:].min() <= coarse[:].max() <= volume.max()


def test_sections_of_a_wrong_shape_are_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have the shape"):
        omezarr.write_image(tmp_path / "a", lambda a, b: np.zeros((1, 2, 2)), (4, 2, 2), np.uint8, VOXEL, "a")
    with pytest.raises(ValueError, match="whole numbers"):
        omezarr.write_labels(tmp_path / "a", "b", lambda a, b: np.zeros((1, 2, 2)), (1, 2, 2), np.float32, VOXEL)


def test_labels_need_an_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        omezarr.write_labels(tmp_path / "no", "b", lambda a, b: np.zeros((1, 2, 2)), (1, 2, 2), np.uint8, VOXEL)


def test_an_image_in_the_store_can_be_read(image: Path, volume: np.ndarray, s3_store: Store) -> None:
    s3_store.upload_tree(image, "v.ome.zarr")
    array, voxel_size = omezarr.open_image(s3_store.uri_of("v.ome.zarr"))
    assert voxel_size == VOXEL
    np.testing.assert_array_equal(array[10:12], volume[10:12])


def test_version_0_4_with_micrometres_and_a_channel(tmp_path: Path, volume: np.ndarray) -> None:
    group = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    group.create_array("s0", data=volume[None, None], chunks=(1, 1, 35, 64, 64))
    group.attrs["multiscales"] = [_multiscale_04("micrometer", [1, 1, 0.008, 0.004, 0.005])]
    array, voxel_size = omezarr.open_image(tmp_path / "old.zarr")
    assert voxel_size.zyx == pytest.approx((8, 4, 5))
    assert (array.shape, array.dtype) == (SHAPE, np.uint8)
    np.testing.assert_array_equal(array[3:5], volume[3:5])
    np.testing.assert_array_equal(array[3, :, 1], volume[3, :, 1])


def test_a_voxel_size_is_never_guessed(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    group.create_array("s0", data=np.zeros((1, 1, 3, 4, 5), np.uint8))
    for unit, scale, problem in (
        (None, [1, 1, 8, 4, 5], "units"),
        ("parsec", [1, 1, 8, 4, 5], "units"),
        ("nanometer", None, "does not state"),
        ("nanometer", [1, 1, 0, 4, 5], "the voxel size"),
    ):
        group.attrs["multiscales"] = [_multiscale_04(unit, scale)]
        with pytest.raises(InputError, match=problem):
            omezarr.open_image(tmp_path / "old.zarr")
        assert omezarr.open_image(tmp_path / "old.zarr", voxel_size=VOXEL)[1] == VOXEL


def test_several_channels_are_refused(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    group.create_array("s0", data=np.zeros((1, 2, 3, 4, 5), np.uint8))
    group.attrs["multiscales"] = [_multiscale_04("nanometer", [1, 1, 8, 4, 5])]
    with pytest.raises(InputError, match="several channels"):
        omezarr.open_image(tmp_path / "old.zarr")


@pytest.mark.parametrize("content", [None, {}, {"multiscales": []}, {"multiscales": [{"axes": []}]}])
def test_what_is_no_image_is_bad_input(tmp_path: Path, content: dict | None) -> None:
    if content is not None:
        zarr.open_group(tmp_path / "a.zarr", mode="w").attrs.update(content)
    with pytest.raises(InputError, match="is not an OME-Zarr image"):
        omezarr.open_image(tmp_path / "a.zarr")


def _write(root: Path, volume: np.ndarray, labels: np.ndarray) -> Path:
    omezarr.write_image(root, lambda a, b: volume[a:b], SHAPE, np.uint8, VOXEL, "test")
    organelles = {1: "#ffffff", 2: "#2ca02c"}
    few = (labels % 3).astype(np.uint8)
    omezarr.write_labels(root, "organelles", lambda a, b: few[a:b], SHAPE, np.uint8, VOXEL, organelles)
    omezarr.write_labels(root, "cells", lambda a, b: labels[a:b], SHAPE, np.uint32, VOXEL)
    return root


def _multiscale_04(unit: str | None, scale: list[float] | None) -> dict:
    space = [{"name": name, "type": "space", **({"unit": unit} if unit else {})} for name in "zyx"]
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *space]
    steps = [{"type": "scale", "scale": scale}] if scale else []
    return {"version": "0.4", "axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": steps}]}
