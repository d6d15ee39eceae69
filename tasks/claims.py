"""Which worker has which acquisition.

A claim is an object that is put only where there is none, so that of any number of workers one gets it; the next claim
on the same acquisition has the next number. A worker that dies leaves its claim behind, and another one takes over: at
once on the same machine, where the process can be seen to be gone; from another machine once it has not been heard of
for a while. Clocks of different machines are never compared.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from cmseg_core.errors import InputError
from cmseg_core.schema import Frozen
from cmseg_core.storage.stages import canonical_json
from cmseg_core.storage.store import Store

log = logging.getLogger("cmseg.tasks")

CLAIMS = "work/claims"
BEAT_SECONDS = 30.0
"""Between two signs of life of a worker that holds a claim."""
LEASE_SECONDS = 150.0
"""A worker of another machine that gave no sign of life for so long is dead."""


class Owner(Frozen):
    """The process that holds a claim.

    Attributes
    ----------
    host : str
    pid : int
    began : float
        When the process began: tells it from a later one with its number.
    token : str
        Of this claim alone.
    """

    host: str
    pid: int
    began: float
    token: str

    @staticmethod
    def this() -> Owner:
        """This process, about to claim something."""
        began = psutil.Process().create_time()
        return Owner(host=socket.gethostname(), pid=os.getpid(), began=began, token=uuid.uuid4().hex)

    def is_gone(self) -> bool:
        """Whether it is seen to have ended, or to have let go; never of another machine's."""
        if self.host != socket.gethostname():
            return False
        try:
            if psutil.Process(self.pid).create_time() != self.began:
                return True
        except psutil.NoSuchProcess:
            return True
        return self.pid == os.getpid() and self.token not in _HELD


_HELD: set[str] = set()
"""Tokens of the claims that this process has not let go of; in the store a claim may outlast that."""


@dataclass(frozen=True)
class Claim:
    """A claim of this process.

    Attributes
    ----------
    store : Store
    name : str
        Of the acquisition.
    attempt : int
        1, or more where workers died over the acquisition before.
    token : str
    """

    store: Store
    name: str
    attempt: int
    token: str

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Give signs of life as long as the context lasts, and let go of the acquisition then."""
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(ended,), name=f"claim-{self.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            _HELD.discard(self.token)
            self._let_go()

    def _let_go(self) -> None:
        try:
            forget(self.store, self.name, self.attempt)
        except (InputError, OSError) as error:  # what was done counts all the same
            log.warning("%s: %s", self.name, error)

    def _beat(self, ended: threading.Event) -> None:
        beat = 0
        while not ended.wait(BEAT_SECONDS):
            beat += 1
            try:
                self.store.put(f"{_folder(self.name, self.attempt)}/beat.json", canonical_json({"beat": beat}))
            except (InputError, OSError) as error:  # the next beat may come through
                log.warning("%s: %s", self.name, error)


def claim(store: Store, name: str, *, patience: float = 0.0) -> Claim | None:
    """Claim an acquisition; None where another worker has it.

    Parameters
    ----------
    store : Store
    name : str
    patience : float
        Seconds to watch a claim of another machine for a sign of life, before it is taken over; 0 leaves it alone.
    """
    attempts = _attempts(store, name)
    latest = max(attempts, default=0)
    if latest and not _is_over(store, name, latest, patience):
        return None
    owner = Owner.this()
    mine = Claim(store, name, latest + 1, owner.token)
    key, data = f"{_folder(name, mine.attempt)}/owner.json", canonical_json(owner)
    _HELD.add(owner.token)
    won = False
    try:
        won = _put_claim(store, key, data)
    finally:
        if not won:
            _HELD.discard(owner.token)
    return mine if won else None


def abandoned(store: Store) -> dict[str, int]:
    """Acquisitions whose last claim outlived its worker, as far as can be seen at once, and that claim's number."""
    found = {name: max(_attempts(store, name), default=0) for name in store.folders(CLAIMS)}
    return {name: latest for name, latest in found.items() if latest and _is_over(store, name, latest, 0.0)}


def forget(store: Store, name: str, latest: int) -> None:
    """Delete the claims on an acquisition up to a number."""
    for attempt in _attempts(store, name):
        if attempt <= latest:
            store.delete(_folder(name, attempt))


def is_claimed(store: Store, name: str) -> bool:
    """Whether a worker has an acquisition, as far as can be seen at once."""
    latest = max(_attempts(store, name), default=0)
    return latest > 0 and not _is_over(store, name, latest, 0.0)


def _put_claim(store: Store, key: str, owner: bytes) -> bool:
    """Whether the claim that stands in the end is this one. Where the answer of the service is lost, even the winner is
    told no, or nothing."""
    try:
        if store.put_if_absent(key, owner):
            return True
    except OSError:
        if not _stands(store, key, owner):
            raise
        return True
    return _stands(store, key, owner)


def _stands(store: Store, key: str, owner: bytes) -> bool:
    try:
        return store.get(key) == owner
    except KeyError:
        return False


def _folder(name: str, attempt: int) -> str:
    return f"{CLAIMS}/{name}/{attempt:04d}"


def _attempts(store: Store, name: str) -> list[int]:
    return [int(folder) for folder in store.folders(f"{CLAIMS}/{name}") if folder.isdigit()]


def _is_over(store: Store, name: str, attempt: int, patience: float) -> bool:
    """Whether a claim's owner let go or died."""
    folder = _folder(name, attempt)
    try:
        owner = Owner.model_validate_json(store.get(f"{folder}/owner.json"))
    except KeyError:
        return True  # let go just now
    if owner.is_gone():
        return True
    if patience <= 0 or owner.host == socket.gethostname():
        return False
    first, deadline = _last_beat(store, folder), time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(min(5.0, patience / 10))
        if _last_beat(store, folder) != first:
            return False
    return True


def _last_beat(store: Store, folder: str) -> int:
    try:
        return json.loads(store.get(f"{folder}/beat.json"))["beat"]
    except KeyError:
        return 0
