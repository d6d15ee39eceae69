"""What a run is and how far, on its page in Prefect."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

log = logging.getLogger("cmseg.flows")

LEAST_STEP = 0.1
"""Smaller steps are not told: each is a call to the server."""


def resource_of(name: str) -> dict[str, str]:
    """An acquisition as Prefect's events name it."""
    return {"prefect.resource.id": f"cmseg.acquisition.{name}", "prefect.resource.name": name}


@contextmanager
def _unharmed() -> Iterator[None]:
    """What cannot be shown takes nothing from the run."""
    try:
        yield
    except Exception as error:
        log.warning("Prefect's page cannot be kept up: %s", error)


def tag_run(*tags: str) -> None:
    """Tag this run of a flow, and not its tasks: before each task that has tags Prefect asks its server about them."""
    with _unharmed(), get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), tags=tags)


class Progress:
    """How far a run is.

    Parameters
    ----------
    what : str
        Is to be done.
    key : str, optional
        Under which it stands among the artifacts of all runs, the newest first. Without one it stands on the page of
        the run alone.
    """

    def __init__(self, what: str, key: str | None = None) -> None:
        self._told = 0.0
        self._artifact: UUID | None = None
        with _unharmed():
            self._artifact = cast(UUID, create_progress_artifact(0.0, key=key, description=what))

    def reach(self, share: float, state: str) -> None:
        """Tell that a share of the work, 0 to 1, is done, and what is being done."""
        if self._artifact is None or (share < 1 and share - self._told < LEAST_STEP):
            return
        with _unharmed():
            update_progress_artifact(self._artifact, 100 * share, state)
            self._told = share

    def between(self, first: float, last: float, what: str) -> Callable[[int, int], None]:
        """What tells, of a part of the work, how many things are done, and of how many."""
        return lambda done, total: self.reach(first + (last - first) * done / total, f"{done} of {total} {what}")
