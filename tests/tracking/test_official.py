"""Official checkpoints, fetched from a server on this machine that breaks in every way it is told to."""

from __future__ import annotations

import fcntl
import hashlib
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.tracking import official
from cmseg_core.tracking.official import OFFICIAL, Checkpoint, fetch_checkpoint, place_of
from cmseg_core.tracking.registry import resolve_model

NAME = "sam-vit-b"
CONTENT = np.random.default_rng(0).bytes(300_000)


@dataclass
class Mirror:
    """What a server gives and how it misbehaves; `asked` are the ranges that were asked for."""

    content: bytes = CONTENT
    breaks_after: int | None = None
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """A running server."""
    state = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and state.ranges else 0
            if start >= len(state.content):
                self.send_error(416)
                return
            rest = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: state.breaks_after])

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/sam.pth"
        Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a few bytes under Meta's name, and no waiting."""
    checkpoint = Checkpoint("http://127.0.0.1:1/", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(OFFICIAL, NAME, checkpoint)
    monkeypatch.setattr(official, "_WAIT_SECONDS", 0.0)


def partial(cache: Path) -> Path:
    return cache / "official" / f".{NAME}.pth.partial"


def test_a_checkpoint_is_fetched_once_and_then_used_by_name(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"has not been fetched yet; run `cmseg models fetch {NAME}`"):
        resolve_model(NAME, "sam", "sqlite:////nowhere", tmp_path)
    came: list[int] = []
    path = fetch_checkpoint(NAME, tmp_path, url=mirror.url, on_bytes=came.append)
    assert path.read_bytes() == CONTENT
    assert sum(came) == len(CONTENT)
    assert fetch_checkpoint(NAME, tmp_path, url=mirror.url) == path
    assert mirror.asked == [None]
    assert [one.name for one in path.parent.iterdir()] == [f"{NAME}.pth"]
    found = resolve_model(NAME, "sam", "sqlite:////nowhere", tmp_path)
    assert (found.path, found.version, found.sha256) == (path, "official", hashlib.sha256(CONTENT).hexdigest())


@pytest.mark.parametrize("ranges", [True, False])
def test_what_came_before_a_break_is_not_fetched_again(mirror: Mirror, tmp_path: Path, ranges: bool) -> None:
    partial(tmp_path).parent.mkdir()
    partial(tmp_path).write_bytes(CONTENT[:1000])
    mirror.ranges = ranges
    came: list[int] = []
    assert fetch_checkpoint(NAME, tmp_path, url=mirror.url, on_bytes=came.append).read_bytes() == CONTENT
    assert mirror.asked == ["bytes=1000-"]
    assert came[0] == 1000


def test_a_connection_that_breaks_is_taken_up_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.breaks_after = 100_000
    assert fetch_checkpoint(NAME, tmp_path, url=mirror.url).read_bytes() == CONTENT
    assert mirror.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_that_is_busy_is_asked_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.statuses = [503, 429]
    assert fetch_checkpoint(NAME, tmp_path, url=mirror.url).read_bytes() == CONTENT


def test_a_server_that_stays_away_is_given_up_and_what_came_is_kept(mirror: Mirror, tmp_path: Path) -> None:
    partial(tmp_path).parent.mkdir()
    partial(tmp_path).write_bytes(CONTENT[:1000])
    mirror.statuses = [500] * 99
    with pytest.raises(InputError, match=r"cannot be fetched \(500 .*which goes on from there"):
        fetch_checkpoint(NAME, tmp_path, url=mirror.url)
    assert len(mirror.asked) == 5
    assert partial(tmp_path).read_bytes() == CONTENT[:1000]


def test_a_wrong_address_is_refused_at_once(mirror: Mirror, tmp_path: Path) -> None:
    mirror.statuses = [404]
    with pytest.raises(InputError, match="cannot be fetched .404"):
        fetch_checkpoint(NAME, tmp_path, url=mirror.url)
    with pytest.raises(InputError, match="is no address of a file"):
        fetch_checkpoint(NAME, tmp_path, url="ftp://somewhere/sam.pth")
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch_checkpoint(NAME, tmp_path)  # nobody answers at this port


def test_another_file_is_thrown_away(mirror: Mirror, tmp_path: Path) -> None:
    mirror.content = CONTENT[:-1] + b"!"
    with pytest.raises(InputError, match="another file than Meta's sam-vit-b"):
        fetch_checkpoint(NAME, tmp_path, url=mirror.url)
    assert list((tmp_path / "official").iterdir()) == []


def test_a_file_that_ends_too_early_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    mirror.content = CONTENT[:-5]
    with pytest.raises(InputError, match="cannot be fetched .416"):
        fetch_checkpoint(NAME, tmp_path, url=mirror.url)
    short = tmp_path / "short.pth"
    short.write_bytes(CONTENT[:-5])
    with pytest.raises(InputError, match="ends after 299,995 of 300,000 bytes"):
        fetch_checkpoint(NAME, tmp_path, url=short.as_uri())


def test_a_full_disk_is_told_apart_from_a_bad_address(mirror: Mirror, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"partial: cannot be written .*make room"):
            fetch_checkpoint(NAME, tmp_path, url=mirror.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert mirror.asked == [None]
    assert fetch_checkpoint(NAME, tmp_path, url=mirror.url).read_bytes() == CONTENT
    assert mirror.asked == [None, "bytes=100000-"]


def test_a_partial_file_that_is_too_long_is_emptied(mirror: Mirror, tmp_path: Path) -> None:
    partial(tmp_path).parent.mkdir()
    partial(tmp_path).write_bytes(CONTENT + b"!")
    with pytest.raises(InputError, match="was longer than the checkpoint"):
        fetch_checkpoint(NAME, tmp_path, url=mirror.url)
    assert fetch_checkpoint(NAME, tmp_path, url=mirror.url).read_bytes() == CONTENT


def test_what_was_damaged_since_is_found_and_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    path = fetch_checkpoint(NAME, tmp_path, url=mirror.url)
    path.write_bytes(CONTENT[1:])
    with pytest.raises(InputError, match="is no longer Meta's sam-vit-b"):
        resolve_model(NAME, "sam", "sqlite:////nowhere", tmp_path)
    assert fetch_checkpoint(NAME, tmp_path, url=mirror.url).read_bytes() == CONTENT


def test_a_file_on_this_machine_will_do(tmp_path: Path) -> None:
    at_hand = tmp_path / "sam_vit_b_01ec64.pth"
    at_hand.write_bytes(CONTENT)
    assert fetch_checkpoint(NAME, tmp_path, url=at_hand.as_uri()) == place_of(NAME, tmp_path)


def test_two_at_once_do_not_write_the_same_file(mirror: Mirror, tmp_path: Path) -> None:
    partial(tmp_path).parent.mkdir()
    with partial(tmp_path).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being fetched by another process"):
            fetch_checkpoint(NAME, tmp_path, url=mirror.url)
    assert mirror.asked == []
