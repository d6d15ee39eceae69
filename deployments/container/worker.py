"""A worker in a container that, asked to end, takes no more work and lets running flows end.

Run as ``python -m deployments.container.worker``. A second signal breaks them off; they go on at the next start.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from typing import Any

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate

from deployments.prefect_server import POOL

log = logging.getLogger("cmseg.worker")

LOOK_SECONDS = 1.0
QUIET_SECONDS = 5.0
"""A run that was handed out just before the pause has begun by then."""


class Requests:
    """Counts the requests to end."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: Any) -> None:
        self.count += 1


def main() -> int:
    """Run a worker until it ends or is asked to; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    requests = Requests()
    _pause(False)
    command = (
        *(sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"),
        *("--limit", os.environ.get("CMSEG_RUNS_AT_ONCE", "2"), "--with-healthcheck"),
    )
    worker = subprocess.Popen(command, start_new_session=True)
    while worker.poll() is None and not requests.count:
        time.sleep(LOOK_SECONDS)
    if requests.count:
        _drain(worker, requests)
    return worker.wait()


def _drain(worker: subprocess.Popen[bytes], requests: Requests) -> None:
    try:
        _pause(True)
    except httpx.HTTPError as error:  # a server that is away gives out no work either
        log.warning("Prefect does not answer: %s", error)
    log.info("waits for running flows")
    quiet = time.monotonic()
    while requests.count < 2 and worker.poll() is None and time.monotonic() - quiet < QUIET_SECONDS:
        if psutil.Process(worker.pid).children():
            quiet = time.monotonic()
        time.sleep(LOOK_SECONDS)
    worker.terminate()
    worker.wait()
    try:
        _pause(False)  # for other workers of the pool
    except httpx.HTTPError as error:
        log.warning("the pool stays paused until a worker starts: %s", error)


def _pause(paused: bool) -> None:
    with get_client(sync_client=True) as client:
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=paused))


if __name__ == "__main__":
    sys.exit(main())
