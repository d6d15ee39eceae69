"""The store behaves the same on a folder and on S3, and refuses what would be dangerous."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from cmseg_core.errors import InputError, StoreRefusal
from cmseg_core.storage import store as store_module
from cmseg_core.storage.store import Store

BAD_KEYS = ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/./b", "a\\b", "a/", "a\nb", "a/b#1"]


def test_what_is_put_is_read_back(store: Store) -> None:
    store.put("a/b.bin", b"one")
    assert store.get("a/b.bin") == b"one"
    store.put("a/b.bin", b"second")
    assert store.get("a/b.bin") == b"second"
    assert store.size("a/b.bin") == 6
    assert store.exists("a/b.bin")


def test_a_missing_key_is_a_key_error(store: Store, tmp_path: Path) -> None:
    store.put("folder/file", b"")
    for key in ("nothing", "folder"):
        assert not store.exists(key)
        with pytest.raises(KeyError, match=key):
            store.get(key)
        with pytest.raises(KeyError):
            store.size(key)
        with pytest.raises(KeyError):
            store.download_file(key, tmp_path / "out" / "file")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(KeyError):
        store.download_tree("nothing", tmp_path / "tree")


def test_a_folder_cannot_hold_a_file_and_a_folder_of_one_name(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    store.put("folder/file", b"")
    for key in ("folder", "folder/file/below"):
        with pytest.raises(InputError, match="in its way"):
            store.put(key, b"x")


@pytest.mark.parametrize("key", BAD_KEYS)
def test_dangerous_keys_are_refused_by_every_method(tmp_path: Path, key: str) -> None:
    store = Store.open(tmp_path / "store")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    calls = (
        lambda: store.put(key, b""),
        lambda: store.put_if_absent(key, b""),
        lambda: store.get(key),
        lambda: store.exists(key),
        lambda: store.uri_of(key),
        lambda: store.upload_file(source, key),
        lambda: store.download_file(key, tmp_path / "target"),
    )
    for call in calls:
        with pytest.raises(InputError, match="not a valid key"):
            call()
    assert not (tmp_path / "target").exists()


def test_list_keeps_to_the_folder(store: Store) -> None:
    for key in ("a/1", "a/b/2", "ab/3", "a.txt"):
        store.put(key, b"x")
    assert store.list("a") == ["a/1", "a/b/2"] == store.list("a/")
    assert store.list() == ["a.txt", "a/1", "a/b/2", "ab/3"]
    assert store.list("absent") == []
    assert store.folders() == ["a", "ab"]
    assert store.folders("a") == ["b"]


def test_only_stage_outputs_can_be_deleted(store: Store) -> None:
    for key in ("work/a/1", "work/b/2", "workshop/3", "acquisitions/4"):
        store.put(key, b"x")
    for prefix in ("", "acquisitions", "workshop", "work/../acquisitions", "/work"):
        with pytest.raises(InputError):
            store.delete(prefix)
    assert store.delete("work/a/") == 1
    assert store.list() == ["acquisitions/4", "work/b/2", "workshop/3"]
    assert store.delete("work/absent") == 0


def test_one_of_eight_writers_wins_every_race(store: Store) -> None:
    for round_ in range(2):
        barrier = threading.Barrier(8)

        def write(number: int, key: str = f"race/{round_}", gate: threading.Barrier = barrier) -> bool:
            gate.wait()
            return store.put_if_absent(key, str(number).encode())

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(write, range(8)))
        assert won.count(True) == 1
        assert store.get(f"race/{round_}") == str(won.index(True)).encode()


def test_a_large_file_goes_up_in_parts_and_comes_back(store: Store, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(12 * 2**20 + 1)
    (tmp_path / "large").write_bytes(content)
    store.upload_file(tmp_path / "large", "large.bin")
    assert store.size("large.bin") == len(content)
    assert store.download_file("large.bin", tmp_path / "new" / "back").read_bytes() == content
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["back"]


def test_a_tree_goes_up_and_comes_back(store: Store, tmp_path: Path) -> None:
    files = {"manifest.json": b"m", "cells/1/image.tif": b"i", "a b.txt": b"t", "v.zarr/c/0": b""}
    _write(tmp_path / "tree", files)
    assert store.upload_tree(tmp_path / "tree", "acquisitions/x") == sorted(f"acquisitions/x/{name}" for name in files)
    paths = store.download_tree("acquisitions/x/", tmp_path / "back")
    assert {path.relative_to(tmp_path / "back").as_posix(): path.read_bytes() for path in paths} == files


def test_the_manifest_arrives_after_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "tree", {f"{number:02}": b"x" for number in range(30)} | {"manifest.json": b"m", "z/late": b"l"})
    store = Store.open(tmp_path / "store")
    order: list[str] = []
    upload = Store.upload_file
    monkeypatch.setattr(Store, "upload_file", lambda self, path, key: (upload(self, path, key), order.append(key)))
    store.upload_tree(tmp_path / "tree", "out", last=("z/late", "manifest.json"))
    assert order[-2:] == ["out/z/late", "out/manifest.json"]
    assert len(order) == 32


def test_a_failed_upload_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "tree", {"a": b"x", "manifest.json": b"m", "z": b"l"})
    store = Store.open(tmp_path / "store")
    upload = Store.upload_file

    def fail_on_z(self: Store, path: Path, key: str) -> None:
        if key == "out/z":
            raise ConnectionError("cut")
        upload(self, path, key)

    monkeypatch.setattr(Store, "upload_file", fail_on_z)
    with pytest.raises(ConnectionError, match="cut"):
        store.upload_tree(tmp_path / "tree", "out")
    assert not store.exists("out/manifest.json")


def test_links_are_not_followed_out_of_a_tree(tmp_path: Path) -> None:
    _write(tmp_path / "tree", {"a": b"x"})
    (tmp_path / "tree" / "link").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        Store.open(tmp_path / "store").upload_tree(tmp_path / "tree", "out")


def test_zarr_reads_and_writes_through_the_store(store: Store) -> None:
    volume = np.random.default_rng(1).integers(0, 255, (70, 80, 90), dtype=np.uint8)
    place = store.zarr_store("volumes/a.zarr")
    zarr.create_array(place, data=volume, chunks=(32, 32, 32), shards=(64, 64, 64))
    assert store.exists("volumes/a.zarr/zarr.json")
    again = zarr.open_array(store.zarr_store("volumes/a.zarr", read_only=True), mode="r")
    np.testing.assert_array_equal(again[:], volume)
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 1


def test_a_store_can_be_pickled_and_says_where_things_are(store: Store) -> None:
    store.put("a", b"x")
    again = pickle.loads(pickle.dumps(store))
    assert again.get("a") == b"x"
    assert again.uri_of("a") == f"{store.uri}/a"


def test_no_secret_in_pickle_or_repr(s3_store: Store, s3) -> None:
    assert s3.secret_key.encode() not in pickle.dumps(s3_store)
    assert s3.secret_key not in repr(s3_store) + repr(s3)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("s3://", "not the address of a bucket"),
        ("s3://bucket/../other", "not a valid key"),
        ("s3://Bad_Bucket", "not a valid bucket name"),
        ("gs://bucket", "not a store that cmseg can use"),
    ],
)
def test_bad_addresses_are_refused(uri: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Store.open(uri)


@pytest.mark.parametrize(
    "endpoint", ["http://192.0.2.1:9000", "http://127.0.0.1.example.org", "ftp://127.0.0.1", "127.0.0.1"]
)
def test_credentials_never_go_in_the_clear_over_the_network(s3_env, endpoint: str) -> None:
    with pytest.raises(InputError):
        Store.open("s3://bucket", endpoint=endpoint)


def test_a_password_in_an_address_is_refused_and_not_repeated(s3_env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://somebody:planted-secret@s3.example.org")
    with pytest.raises(InputError, match="holds a user or a password") as caught:
        Store.open("s3://bucket")
    assert "planted-secret" not in str(caught.value)


def test_no_credentials_is_said_at_once(s3) -> None:
    with pytest.raises(InputError, match="no credentials"):
        Store.open("s3://bucket", endpoint=s3.endpoint)


def test_an_absent_bucket_is_bad_input_not_a_missing_key(s3_env) -> None:
    store = Store.open("s3://cmseg-absent")
    for call in (lambda: store.get("a"), lambda: store.put("a", b""), store.list):
        with pytest.raises(InputError, match="no such bucket"):
            call()


def test_wrong_credentials_are_bad_input(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = Store.open(s3_store.uri)
    for call in (
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: store.put_if_absent("a", b""),
        store.list,
    ):
        with pytest.raises(StoreRefusal, match="access was refused"):
            call()


def test_a_service_that_is_away_is_a_connection_error(s3_env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETRIES", 0)
    with pytest.raises(ConnectionError, match="s3://bucket/a"):
        Store.open("s3://bucket", endpoint="http://127.0.0.1:9").get("a")


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be made"):
        Store.open(tmp_path / "file" / "store")


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
