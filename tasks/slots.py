"""No more at a time than the machine, or its GPU, has room for, over all workers that share a night."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from cmseg_core.errors import InputError

LEASE_SECONDS = 90.0
"""A slot whose process gives no sign of life for so long is free again."""


@contextmanager
def slot(limit: str | None) -> Iterator[None]:
    """Hold a slot of a global concurrency limit of Prefect as long as the context lasts; none holds nothing.

    A limit that was removed meanwhile is an error: otherwise Prefect would not limit anything, and say nothing.
    """
    if limit is None:
        yield
        return
    with concurrency(limit, strict=True, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False):
        yield


def check_limit(limit: str | None) -> None:
    """Refuse a limit that Prefect does not know, before anything is begun.

    Raises
    ------
    InputError
    """
    if limit is None:
        return
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(limit)
        except ObjectNotFound as error:
            mend = f"prefect gcl create {limit} --limit 1"
            raise InputError(limit, "is no global concurrency limit that Prefect knows", mend) from error
