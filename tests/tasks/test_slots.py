"""A limit of Prefect holds over threads and workers, and one that does not exist is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.testing.utilities import prefect_test_harness

from cmseg_core.errors import InputError
from tasks.slots import check_limit, slot
from tasks.stage import may_pass


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    """A real Prefect server that knows the limit ``one``."""
    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="one", limit=1))
        yield


def test_one_slot_is_held_by_one(prefect: None) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with slot("one"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.3)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_nothing_is_limited_without_a_name() -> None:
    with slot(None), slot(None):
        check_limit(None)


def test_a_limit_that_prefect_does_not_know_is_refused(prefect: None) -> None:
    check_limit("one")
    with pytest.raises(InputError, match="prefect gcl create two --limit 1"):
        check_limit("two")
    with pytest.raises(ConcurrencySlotAcquisitionError, match="must be created") as caught, slot("two"):
        pass
    assert may_pass(caught.value), "no acquisition is to blame for a limit that was removed"
