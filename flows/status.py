"""What ran, what waits, what was quarantined and why, and what takes the room."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TypedDict

from cmseg_core.errors import InputError, StoreRefusal
from cmseg_core.schema import Manifest, is_name
from cmseg_core.storage.buckets import former_versions
from cmseg_core.storage.manifest import NAME, compare
from cmseg_core.storage.store import DELETABLE, Store
from tasks.landing import (
    ACQUISITIONS,
    INCOMING,
    QUARANTINE,
    fetch_submission,
    read_submission,
    state_of,
    strangers,
    submitted,
    versioned,
)
from tasks.source import open_stack


class AcquisitionState(TypedDict):
    """One acquisition of the landing zone; `version` counts what was submitted under its name."""

    name: str
    version: int
    state: str
    reason: str | None


class StorageUse(TypedDict):
    """Objects and bytes below a folder of the store; `expires` where they go by themselves in the end.

    `former` has the bytes of versions that were deleted or written over and that the bucket keeps; None where nobody
    looked, or may look.
    """

    folder: str
    objects: int
    bytes: int
    former: int | None
    expires: bool


def storage_use(store: Store, *, former: bool = True) -> list[StorageUse]:
    """What takes the room in a store: each top folder, stage outputs by stage; the largest first.

    Parameters
    ----------
    store : Store
    former : bool
        Look for former versions, too, which takes longer.
    """
    objects: Counter[str] = Counter()
    current: Counter[str] = Counter()
    past: Counter[str] = Counter()
    for key, size in store.each_size():
        objects[_folder(key)] += 1
        current[_folder(key)] += size
    if former:
        try:
            for key, size in former_versions(store):
                past[_folder(key)] += size
        except (StoreRefusal, ConnectionError):  # a right of its own, and not every service lists versions
            former = False
    return [
        {
            "folder": folder,
            "objects": objects[folder],
            "bytes": current[folder],
            "former": past[folder] if former else None,
            "expires": folder.startswith(f"{DELETABLE}/"),
        }
        for folder, _ in (current + past).most_common()
    ]


def _folder(key: str) -> str:
    parts = key.split("/")
    return "/".join(parts[: 2 if parts[0] == DELETABLE else 1])


def damage(store: Store, name: str) -> list[str]:
    """Read everything that stands of an acquisition, and compare it with its checksums; a line for each problem.

    Parameters
    ----------
    store : Store
    name : str
        As it was submitted.
    """
    problems: list[str] = []
    if store.exists(f"{INCOMING}/{name}/acquisition.json"):
        submission = read_submission(store, name)
        with tempfile.TemporaryDirectory(prefix="cmseg-") as folder:
            source = fetch_submission(store, name, Path(folder)) / submission.source
            try:
                intact = open_stack(str(source), submission.voxel_size).sha256() == submission.sha256
            except InputError:
                intact = False
        if not intact:
            problems.append(f"{INCOMING}/{name}/{submission.source}: differs from what was submitted")
    place = f"{ACQUISITIONS}/{name}"
    if store.exists(f"{place}/{NAME}"):
        manifest = Manifest.model_validate_json(store.get(f"{place}/{NAME}"))
        sizes = {key.removeprefix(f"{place}/"): size for key, size in store.sizes(place).items()}
        problems += [
            f"{place}/{line}" for line in compare(manifest, sizes, lambda path: store.sha256(f"{place}/{path}"))
        ]
    return problems


def known(store: Store, name: str | None = None) -> list[str]:
    """All acquisitions that were submitted, each version as ``name@2``, by name.

    Parameters
    ----------
    store : Store
    name : str, optional
        Only this one: all versions of a name, or one of them.

    Raises
    ------
    InputError
        Where `name` was never submitted.
    """
    every = {*submitted(store), *filter(is_name, store.folders(QUARANTINE))}
    wanted = sorted((one for one in every if name in {None, one, versioned(one)[0]}), key=versioned)
    if name is not None and not wanted:
        raise InputError(name, "was never submitted", "see `cmseg status` for the names that were")
    return wanted


def acquisition_states(store: Store, name: str | None = None) -> list[AcquisitionState]:
    """The state of each :func:`known` acquisition; without `name` what lies beside them in the landing zone, too."""
    states = [_state(store, one) for one in known(store, name)]
    refused = "is no name of an acquisition; submit it with `cmseg submit`, under letters, digits, dots and hyphens"
    beside = strangers(store) if name is None else []
    return states + [{"name": one, "version": 1, "state": "quarantined", "reason": refused} for one in beside]


def _state(store: Store, one: str) -> AcquisitionState:
    state, reason = state_of(store, one)
    name, version = versioned(one)
    return {"name": name, "version": version, "state": state, "reason": reason}
