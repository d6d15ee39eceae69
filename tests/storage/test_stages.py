"""Stage outputs: the key decides everything, and nothing counts before its marker."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.schema import InstancesConfig
from cmseg_core.storage.stages import MARKER, StageOutput, StageRef, canonical_json, is_damage, layout, slabs, stage_key
from cmseg_core.storage.store import Store
from cmseg_core.storage.tables import pack, unpack

KEY = stage_key("cells", {"stack": "0" * 64}, {"h": 1}, "1")


def test_the_key_is_fixed_for_ever() -> None:
    # Changing it would orphan every output that laboratories hold.
    assert KEY == "15ab2e806aafb3bd57759666519773c654a7040062e0066d7e72e82acaf683f1"


def test_every_part_changes_the_key_and_the_order_does_not() -> None:
    base = ("cells", {"a": "1", "b": "2"}, {"x": 1.5, "y": [1, 2]}, "1")
    others = [
        ("organelles", *base[1:]),
        (base[0], {"a": "2", "b": "1"}, *base[2:]),
        (*base[:2], {"x": 1.5, "y": [2, 1]}, base[3]),
        (*base[:3], "2"),
    ]
    assert len({stage_key(*parts) for parts in [base, *others]}) == 5
    assert stage_key("cells", {"b": "2", "a": "1"}, {"y": (1, 2), "x": 1.5}, "1") == stage_key(*base)


def test_a_pydantic_config_gives_the_key_of_its_values() -> None:
    config = InstancesConfig(h_nm=50)
    assert stage_key("cells", {}, config, "1") == stage_key("cells", {}, config.model_dump(), "1")
    assert stage_key("cells", {}, config, "1") != stage_key("cells", {}, InstancesConfig(h_nm=51), "1")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_without_one_text_has_no_key(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": value})


def test_nothing_counts_before_the_marker(store: Store) -> None:
    output = StageOutput(store, "cells", KEY)
    output.write_json("table.json", {"b": 1, "a": [1.5, None]})
    output.write_bytes("mesh.glb", b"glTF")
    assert not output.complete
    with pytest.raises(KeyError):
        _ = output.summary
    output.commit({"cells": 3})
    again = StageOutput.from_reference(StageRef.model_validate_json(output.reference.model_dump_json()), store)
    assert again.complete
    assert again.summary == {"cells": 3}
    assert again.read_json("table.json") == {"a": [1.5, None], "b": 1}
    assert again.read_bytes("mesh.glb") == b"glTF"
    assert store.folders("work/cells") == [KEY]


def test_an_output_that_partly_expired_is_not_complete(store: Store) -> None:
    output = StageOutput(store, "cells", KEY)
    output.write_bytes("part/a", b"1")
    output.write_bytes("b", b"2")
    output.commit()
    store.delete(f"work/cells/{KEY}/part")
    assert not output.complete
    output.write_bytes("part/a", b"other")
    output.commit({"again": True})
    assert output.complete
    assert output.summary == {"again": True}


def test_parts_are_known_until_what_they_made_expires(store: Store) -> None:
    output = StageOutput(store, "cells", KEY)
    assert output.finished_parts() == set()
    for name in ("one", "two"):
        output.write_bytes(f"values/{name}", b"1")
        output.finish_part(name, name.encode())
    assert output.finished_parts() == {"one", "two"}
    assert output.read_part("two") == b"two"
    with pytest.raises(KeyError):
        output.read_part("three")
    output.commit()
    assert output.complete and output.finished_parts() == {"one", "two"}
    store.delete(f"work/cells/{KEY}/values")
    assert output.finished_parts() == set()


def test_old_parts_count_only_in_an_output_that_is_complete(tmp_path: Path) -> None:
    output = StageOutput(Store.open(str(tmp_path)), "cells", KEY)
    for name in ("old", "new"):
        output.finish_part(name)
    last_week = time.time() - 8 * 86400
    os.utime(tmp_path / output.prefix / "parts" / "old", (last_week, last_week))
    assert output.finished_parts() == {"new"}
    output.commit()
    assert output.finished_parts() == {"old", "new"}


@dataclass(frozen=True, eq=False)
class Table:
    name: np.ndarray
    height: np.ndarray


def test_a_table_is_packed_and_no_pickle_is_read() -> None:
    table = Table(np.arange(3), np.array([0.5, 1.5], np.float32))
    again = unpack(Table, pack(table))
    np.testing.assert_array_equal(again.name, table.name)
    assert again.height.dtype == np.float32 and again.height.tolist() == [0.5, 1.5]
    with pytest.raises(ValueError, match="pickle|Object"):
        pack(Table(np.array([object()]), np.zeros(1)))


def test_the_first_of_two_equal_writers_stands(store: Store) -> None:
    for number in (1, 2):
        output = StageOutput(store, "cells", KEY)
        output.write_bytes("a", b"same")
        output.commit({"writer": number})
    assert output.complete
    assert output.summary == {"writer": 1}


def test_a_volume_is_written_slab_by_slab_and_read_anywhere(store: Store) -> None:
    volume = np.random.default_rng(0).integers(0, 9, (150, 70, 90), dtype=np.uint16)
    output = StageOutput(store, "cells", KEY)
    array = output.create_array("labels", volume.shape, volume.dtype, depth=64)
    assert (array.chunks, array.shards) == ((64, 64, 64), (64, 128, 128))
    for start, stop in slabs(volume.shape, 64):
        array[start:stop] = volume[start:stop]
    output.commit()
    np.testing.assert_array_equal(output.array("labels")[60:70, 5:, :80], volume[60:70, 5:, :80])
    with pytest.raises(ValueError, match="read-only"):
        output.array("labels")[0] = 0
    with pytest.raises(KeyError):
        output.array("absent")


def test_a_second_attempt_never_takes_shards_from_the_first(store: Store) -> None:
    output = StageOutput(store, "cells", KEY)
    output.create_array("labels", (8, 9, 10), np.uint8)[:] = 7
    second = StageOutput(store, "cells", KEY).create_array("labels", (8, 9, 10), np.uint8)
    assert (second[:] == 7).all()
    output.array("labels", writable=True)[0] = 3
    assert (second[0] == 3).all()
    with pytest.raises(InputError, match="another layout"):
        output.create_array("labels", (8, 9, 11), np.uint8)


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 3, (70, 130, 70), dtype=np.uint8)
    for name in ("a", "b"):
        array = StageOutput(Store.open(tmp_path / name), "cells", KEY).create_array(
            "v", volume.shape, np.uint8, depth=64
        )
        for start, stop in slabs(volume.shape, 64):
            array[start:stop] = volume[start:stop]
    first, second = (Store.open(tmp_path / name) for name in ("a", "b"))
    assert first.list() == second.list()
    assert all(first.get(key) == second.get(key) for key in first.list())


@pytest.mark.parametrize(
    ("shape", "chunks", "shards"),
    [
        ((300, 300, 300), (64, 64, 64), (256, 256, 256)),
        ((65, 64, 10), (64, 64, 10), (128, 64, 10)),
        ((10, 20, 30), (10, 20, 30), None),
    ],
)
def test_layout(shape, chunks, shards) -> None:
    assert layout(shape) == (chunks, shards)


def test_slabs_cover_every_section_once() -> None:
    assert list(slabs((130, 5, 5), 64)) == [(0, 64), (64, 128), (128, 130)]
    with pytest.raises(ValueError, match="at least one"):
        list(slabs((3, 1, 1), 0))


def test_bad_names_are_refused(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for stage, key in (("../up", KEY), ("Cells", KEY), ("cells", "abc"), ("cells", KEY.upper())):
        with pytest.raises(InputError):
            StageOutput(store, stage, key)
    with pytest.raises(InputError, match="name of the marker"):
        StageOutput(store, "cells", KEY).write_bytes("_complete.json", b"")
    with pytest.raises(InputError, match="not a valid key"):
        StageOutput(store, "cells", KEY).write_bytes("../other/file", b"")


def test_a_reference_belongs_to_its_store(tmp_path: Path) -> None:
    ref = StageOutput(Store.open(tmp_path / "a"), "cells", KEY).reference
    with pytest.raises(InputError, match="not the store in use"):
        StageOutput.from_reference(ref, Store.open(tmp_path / "b"))
    with pytest.raises(ValidationError):
        StageRef(uri="a", stage="b", key="c", array=[1])


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]


@pytest.mark.parametrize("edge", [24, 70])
def test_a_flipped_byte_in_an_array_is_never_read_as_if_it_were_whole(tmp_path: Path, edge: int) -> None:
    store = Store.open(tmp_path)  # one chunk, and chunks within a shard with an index
    output = StageOutput(store, "cells", KEY)
    grey = np.random.default_rng(0).integers(0, 40, (edge,) * 3).astype(np.uint8)
    output.create_array("image", grey.shape, np.uint8)[:] = grey
    (shard,) = [key for key in store.list(output.prefix) if "/c/" in key]
    whole = store.get(shard)
    found = 0
    for position in {*range(0, 40), *range(0, len(whole), len(whole) // 100), *range(len(whole) - 140, len(whole))}:
        store.put(shard, flipped(whole, position))
        try:
            read = output.array("image")[:]
        except Exception as error:
            assert is_damage(error), error
            found += 1
        else:
            assert np.array_equal(read, grey), position  # an unused bit of the format
    assert found > 200


def test_a_flipped_byte_in_the_description_of_an_array_is_found(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    output = StageOutput(store, "cells", KEY)
    output.create_array("image", (70, 70, 70), np.uint8)[:] = 1
    output.commit()
    assert output.complete
    (key,) = [key for key in store.list(output.prefix) if key.endswith("zarr.json")]
    whole = store.get(key)
    for position in range(len(whole)):
        store.put(key, flipped(whole, position))
        with pytest.raises(RuntimeError) as caught:
            _ = output.complete
        assert is_damage(caught.value)


def test_a_flipped_byte_in_a_small_object_is_found_as_it_is_read(store: Store) -> None:
    output = StageOutput(store, "measure", KEY)
    output.write_json("row.json", {"volume_um3": 4.2})
    key = f"{output.prefix}/row.json"
    whole = store.get(key)
    for position in range(len(whole)):
        store.put(key, whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(RuntimeError, match="doesn't match checksum"):
            output.read_json("row.json")
    store.put(key, whole[:5])
    with pytest.raises(RuntimeError, match="doesn't match checksum"):
        output.read_json("row.json")
    store.put(key, whole)
    assert output.read_json("row.json") == {"volume_um3": 4.2}


def test_an_output_whose_marker_was_damaged_is_made_again(store: Store) -> None:
    output = StageOutput(store, "organelles", KEY)
    output.write_json("row.json", {})
    output.commit({"disagreement": 0.25})
    key = f"{output.prefix}/{MARKER}"
    whole = store.get(key)
    store.put(key, whole.replace(b"0.25", b"0.35"))
    assert not output.complete
    output.commit({"disagreement": 0.25})
    assert output.complete and store.get(key) == whole
