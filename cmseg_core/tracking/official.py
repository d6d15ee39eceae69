"""The checkpoints of Segment Anything that Meta publishes: fetched once, checked, and used by name."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from cmseg_core.errors import InputError
from cmseg_core.storage.manifest import file_sha256

_PLACE = "https://dl.fbaipublicfiles.com/segment_anything"
_ATTEMPTS = 5
"""How often in a row a connection may break without a byte having come."""
_WAIT_SECONDS = 2.0
_TIMEOUT_SECONDS = 60
_CHUNK = 1 << 20


class Checkpoint(NamedTuple):
    """Where a checkpoint lies, how long it is in bytes, and its SHA-256."""

    url: str
    size: int
    sha256: str


OFFICIAL: dict[str, Checkpoint] = {
    "sam-vit-h": Checkpoint(
        f"{_PLACE}/sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    "sam-vit-l": Checkpoint(
        f"{_PLACE}/sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "sam-vit-b": Checkpoint(
        f"{_PLACE}/sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
}
"""Meta's checkpoints by the names that cmseg gives them."""


def place_of(name: str, cache: Path) -> Path:
    """File in the cache that holds an official checkpoint, whether or not it is there."""
    return cache / "official" / f"{name}.pth"


def check_address(url: str) -> None:
    """Raise `InputError` where nothing could be fetched from an address, whoever answers there."""
    if urlsplit(url).scheme not in {"http", "https", "file"}:
        raise InputError(url, "is no address of a file", "let it begin with https://, http:// or file://")


def fetched_checkpoint(name: str, cache: Path) -> Path:
    """The file of an official checkpoint that was fetched earlier.

    Raises
    ------
    InputError
        Where it was not, or is no longer what was fetched.
    """
    path, mend = place_of(name, cache), f"run `cmseg models fetch {name}`"
    if not path.is_file():
        raise InputError(name, "has not been fetched yet", mend)
    if file_sha256(path) != OFFICIAL[name].sha256:
        raise InputError(path, f"is no longer Meta's {name}", mend)
    return path


def fetch_checkpoint(
    name: str, cache: Path, *, url: str | None = None, on_bytes: Callable[[int], None] | None = None
) -> Path:
    """Fetch an official checkpoint into the cache, going on where an earlier attempt broke off.

    Parameters
    ----------
    name : str
        Key of `OFFICIAL`.
    cache : Path
    url : str, optional
        Address of a mirror, http, https or file; by default Meta's. Length and SHA-256 must be Meta's all the same.
    on_bytes : callable, optional
        Told how many more bytes have come; first, how many were there already.

    Returns
    -------
    Path
        The whole file, checked. Nothing is fetched where it is there.

    Raises
    ------
    InputError
        Where another process is fetching it, the address cannot be reached, or what it gives is not Meta's file.
    """
    wanted, path = OFFICIAL[name], place_of(name, cache)
    if path.is_file() and file_sha256(path) == wanted.sha256:
        return path
    address = url or wanted.url
    check_address(address)
    with _partial(path) as file:
        _append(file, address, wanted.size, on_bytes or (lambda count: None))
        staged = Path(file.name)
        if file_sha256(staged) != wanted.sha256:
            staged.unlink()
            reason = f"gives another file than Meta's {name}: its SHA-256 differs, and what came was thrown away"
            raise InputError(address, reason, "fetch it again, or from another place with --url")
        staged.replace(path)
    return path


@contextmanager
def _partial(path: Path) -> Iterator[FileIO]:
    """The file beside `path` that holds what has come so far, for this process alone."""
    staged = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = staged.open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(path, "is being fetched by another process", "wait for it") from None
        yield file


def _unwritable(path: object, error: OSError) -> InputError:
    mend = "make room, or set CMSEG_WORKSPACE to a folder that can be written"
    return InputError(path, f"cannot be written ({error.strerror})", mend)


def _append(file: FileIO, address: str, size: int, on_bytes: Callable[[int], None]) -> None:
    """Bring a file to its length; a connection that breaks is taken up again."""
    on_bytes(file.tell())
    failures = 0
    while (start := file.tell()) < size:
        try:
            _receive(file, address, start, size, on_bytes)
            reason = f"ends after {file.tell():,} of {size:,} bytes"
            if file.tell() == start:
                raise InputError(address, reason, "give the address of the whole file with --url")
        except HTTPError as error:
            if error.code < 500 and error.code not in {408, 429}:
                reason = f"cannot be fetched ({error.code} {error.reason})"
                raise InputError(address, reason, "check the address, or give another with --url") from error
            reason = f"cannot be fetched ({error.code} {error.reason})"
        except (OSError, HTTPException) as error:
            reason = f"cannot be fetched ({error})"
        failures = 0 if file.tell() > start else failures + 1
        if failures == _ATTEMPTS:
            mend = "give the same command again, which goes on from there, or a file: `cmseg models import`"
            raise InputError(address, reason, mend)
        if failures:
            time.sleep(_WAIT_SECONDS * failures)
    if file.tell() > size:  # left by something else than this function
        file.truncate(0)
        raise InputError(file.name, "was longer than the checkpoint and is emptied", "give the same command again")


def _receive(file: FileIO, address: str, start: int, size: int, on_bytes: Callable[[int], None]) -> None:
    request = Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    with urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
        if start and answer.status != 206:  # a server, or a file, that cannot begin in the middle
            _skip(answer, start)
        while chunk := answer.read(min(_CHUNK, size - file.tell())):
            try:
                _write(file, chunk)
            except OSError as error:  # no fault of the address
                raise _unwritable(file.name, error) from error
            on_bytes(len(chunk))
        os.fsync(file.fileno())


def _write(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _skip(answer: BinaryIO, count: int) -> None:
    while count and (chunk := answer.read(min(_CHUNK, count))):
        count -= len(chunk)
