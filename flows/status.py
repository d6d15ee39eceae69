"""What ran, what waits, and what was quarantined and why."""

from __future__ import annotations

from typing import TypedDict

from cmseg_core.errors import InputError
from cmseg_core.storage.store import Store
from tasks.landing import QUARANTINE, read_submission, state_of, submitted


class AcquisitionState(TypedDict):
    """One acquisition of the landing zone; `version` is the beginning of its content's hash."""

    name: str
    version: str | None
    state: str
    reason: str | None


def acquisition_states(store: Store, name: str | None = None) -> list[AcquisitionState]:
    """The state of every acquisition that was submitted, by name.

    Parameters
    ----------
    store : Store
    name : str, optional
        Only this one.

    Raises
    ------
    InputError
        Where `name` was never submitted.
    """
    known = sorted({*submitted(store), *store.folders(QUARANTINE)})
    if name is not None and name not in known:
        raise InputError(name, "was never submitted", "see `cmseg status` for the names that were")
    return [_state(store, one) for one in known if name in {None, one}]


def _state(store: Store, name: str) -> AcquisitionState:
    state, reason = state_of(store, name)
    try:
        version = read_submission(store, name).sha256[:12]
    except InputError:
        version = None
    return {"name": name, "version": version, "state": state, "reason": reason}
