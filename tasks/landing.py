"""The landing zone: what was submitted, what waits, what is in work, what was quarantined.

An acquisition exists once its ``acquisition.json``, written last, is there. Its files lie in a folder named after
their content, so that two people who submit under one name at once cannot mix their data. Other content under the same
name is a version of its own, ``name@2``, with a result of its own: nothing is overwritten.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.schema import Acquisition, first_problem, is_name
from cmseg_core.storage.keys import checked_key
from cmseg_core.storage.stages import canonical_json
from cmseg_core.storage.store import Store
from tasks.claims import is_claimed

INCOMING = "incoming"
ACQUISITIONS = "acquisitions"
QUARANTINE = "quarantine"
Kind = Literal["input", "fault"]
State = Literal["waiting", "running", "published", "quarantined"]


def submitted(store: Store) -> list[str]:
    """Names of all complete submissions, sorted.

    Folders that have no name of an acquisition are none, whatever is in them; see `strangers`.
    """
    folders = [name for name in store.folders(INCOMING) if is_name(name)]
    return [name for name in folders if store.exists(f"{INCOMING}/{name}/acquisition.json")]


def strangers(store: Store) -> list[str]:
    """Folders of the landing zone that nobody submitted: an acquisition cannot be called so."""
    return [name for name in store.folders(INCOMING) if not is_name(name)]


def versions_of(store: Store, name: str) -> list[str]:
    """All that was submitted under a name, in the order of the versions."""
    return sorted((one for one in submitted(store) if versioned(one)[0] == name), key=lambda one: versioned(one)[1])


def versioned(name: str) -> tuple[str, int]:
    """The name under which an acquisition was submitted, and its version."""
    base, _, number = name.partition("@")
    return base, int(number or 1)


def waiting(store: Store) -> list[str]:
    """Names of the submissions that were neither published nor quarantined, sorted."""
    return [name for name in submitted(store) if not _published(store, name) and _reason(store, name) is None]


def read_submission(store: Store, name: str) -> Acquisition:
    """What was submitted under `name`.

    Raises
    ------
    InputError
        Where there is none, or its ``acquisition.json`` cannot be understood or leads out of its own folder.
    """
    key = f"{INCOMING}/{name}/acquisition.json"
    try:
        acquisition = Acquisition.model_validate_json(store.get(key))
        for path in (acquisition.source, acquisition.truth_cells, acquisition.truth_organelles):
            checked_key(path if path is not None else "absent")
        if acquisition.name != name:
            raise InputError(key, f"names another acquisition ({acquisition.name})", "submit it under its own name")
        return acquisition
    except KeyError as error:
        raise InputError(name, "was never submitted", "submit it with `cmseg submit`") from error
    except ValidationError as error:
        raise InputError(key, f"cannot be understood ({first_problem(error)})", "submit it anew") from error


def fetch_submission(store: Store, name: str, folder: Path) -> Path:
    """Bring the files of a submission into a local folder."""
    store.download_tree(f"{INCOMING}/{name}", folder, last=("acquisition.json",))
    return folder


def quarantine(store: Store, name: str, reason: str, mend: str, kind: Kind) -> str:
    """Set a submission aside, with the reason why; returns where the reason stands."""
    key = f"{QUARANTINE}/{name}/reason.json"
    store.put(key, canonical_json({"name": name, "reason": reason, "mend": mend, "kind": kind}))
    return store.uri_of(key)


def state_of(store: Store, name: str, *, claimed: bool = True) -> tuple[State, str | None]:
    """State of a submission, and the reason where it was quarantined; `claimed` asks whether a worker has it, too."""
    if _published(store, name):
        return "published", None
    if claimed and is_claimed(store, name):
        return "running", None
    reason = _reason(store, name)
    return ("waiting", None) if reason is None else ("quarantined", str(reason.get("reason")))


def _published(store: Store, name: str) -> bool:
    return store.exists(f"{ACQUISITIONS}/{name}/manifest.json")


def _reason(store: Store, name: str) -> dict[str, Any] | None:
    try:
        return json.loads(store.get(f"{QUARANTINE}/{name}/reason.json"))
    except KeyError:
        return None
