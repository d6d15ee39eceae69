"""What Prometheus is told of a stack: its services, what was submitted, the last night, and the room that is left.

Run as ``python -m flows.metrics WORKSPACE``, as ``cmseg up`` does; or without a workspace where there is no supervisor,
as in a container. All that it calls, and what it listens on, stands in the environment.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from cmseg_core.errors import InputError
from cmseg_core.schema import Workspace
from cmseg_core.storage.manifest import NAME
from cmseg_core.storage.store import Store
from deployments.metrics_server import Source, Sources, server
from deployments.prefect_server import ENDED, PrefectApi
from deployments.processes import LOOPBACK
from flows.places import store_address
from flows.services import service_states
from flows.status import storage_use
from tasks.landing import ACQUISITIONS, INCOMING, QUARANTINE, State, read_submission, state_of

STATES_SECONDS = 30.0
STORAGE_SECONDS = 900.0
"""For which an answer is good; the second one lists the whole store."""


def services(workspace: Workspace) -> list[Metric]:
    """Every service as ``cmseg status`` tells it.

    Raises
    ------
    RuntimeError
        Where the supervisor does not say what it runs.
    """
    up = GaugeMetricFamily("cmseg_service_up", "Whether the process of a service lives.", labels=["service"])
    restarts = CounterMetricFamily(
        "cmseg_service_restarts", "How often the supervisor started it again.", labels=["service"]
    )
    memory = GaugeMetricFamily(
        "cmseg_service_resident_memory_bytes", "Memory of a service and its children.", labels=["service"]
    )
    seconds = CounterMetricFamily(
        "cmseg_service_cpu_seconds", "Processor time of a service and its children.", labels=["service"]
    )
    states = service_states(workspace)
    if not states:
        raise RuntimeError("the supervisor does not say what it runs")
    for state in states:
        name = [state["name"]]
        up.add_metric(name, state["state"] == "up")
        restarts.add_metric(name, state["restarts"])
        memory.add_metric(name, state["bytes"])
        seconds.add_metric(name, state["cpu_seconds"])
    return [up, restarts, memory, seconds]


def disk(folder: Path) -> list[Metric]:
    """The disk of a workspace."""
    usage = shutil.disk_usage(folder)
    return [
        GaugeMetricFamily("cmseg_workspace_free_bytes", "Room that is left on the workspace's disk.", usage.free),
        GaugeMetricFamily("cmseg_workspace_size_bytes", "Size of the workspace's disk.", usage.total),
    ]


def storage(store: Store) -> list[Metric]:
    """What takes the room in a store, as ``cmseg status --storage`` tells it, former versions left out."""
    size = GaugeMetricFamily("cmseg_store_bytes", "What takes the room in the store.", labels=["folder"])
    objects = GaugeMetricFamily("cmseg_store_objects", "Objects in the store.", labels=["folder"])
    for used in storage_use(store, former=False):
        size.add_metric([used["folder"]], used["bytes"])
        objects.add_metric([used["folder"]], used["objects"])
    return [size, objects]


def night(api: PrefectApi) -> list[Metric]:
    """The last night that ended; nothing where none has."""
    run = api.last_ended("nightly", "night")
    if run is None:
        return []
    began, ended = (datetime.fromisoformat(run[name]).timestamp() for name in ("start_time", "end_time"))
    state = GaugeMetricFamily("cmseg_night_last_state", "1 for how the last night ended.", labels=["state"])
    for name in ENDED:
        state.add_metric([name.lower()], run["state_type"] == name)
    return [
        GaugeMetricFamily("cmseg_night_last_end_timestamp_seconds", "When the last night ended.", ended),
        GaugeMetricFamily("cmseg_night_last_duration_seconds", "How long the last night took.", ended - began),
        state,
    ]


class Landing:
    """What became of all that was submitted. What is published stays so, and is read once.

    Parameters
    ----------
    store : Store
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._published: dict[str, Counter[str]] = {}

    def read(self) -> list[Metric]:
        """The metrics of now."""
        store = self._store
        known = {*store.folders(INCOMING), *store.folders(QUARANTINE)}
        counted = Counter({"published": len(known & self._published.keys())})
        size, oldest = 0, time.time()
        for name in known - self._published.keys():
            state, _ = state_of(store, name)
            if state == "published":
                self._published[name] = self._cells(name)
            elif state == "waiting":
                try:
                    oldest = min(oldest, store.modified(f"{INCOMING}/{name}/acquisition.json").timestamp())
                except KeyError:  # its data is on the way
                    continue
                size += self._bytes(name)
            counted[state] += 1
        cells = sum((self._published[name] for name in known & self._published.keys()), Counter())
        states = GaugeMetricFamily("cmseg_acquisitions", "Acquisitions that were submitted.", labels=["state"])
        for state in get_args(State):
            states.add_metric([state], counted[state])
        found = GaugeMetricFamily("cmseg_cells", "Cells of all published results.", labels=["state"])
        for state in ("published", "quarantined"):
            found.add_metric([state], cells[state])
        return [
            states,
            GaugeMetricFamily("cmseg_waiting_bytes", "Size of the stacks that wait for a night.", size),
            GaugeMetricFamily(
                "cmseg_waiting_oldest_age_seconds",
                "For how long the oldest acquisition has been waiting; 0 where none waits.",
                max(0.0, time.time() - oldest) if counted["waiting"] else 0.0,
            ),
            found,
        ]

    def _bytes(self, name: str) -> int:
        try:
            return read_submission(self._store, name).bytes
        except InputError:  # the night will say what is wrong with it
            return 0

    def _cells(self, name: str) -> Counter[str]:
        """Cells of a result, by whether they have organelles."""
        manifest = json.loads(self._store.get(f"{ACQUISITIONS}/{name}/{NAME}"))
        paths = (output["path"] for output in manifest["outputs"])
        cells = {path.split("/")[1] for path in paths if path.startswith("cells/")}
        quarantined = len(manifest["quarantined_cells"])
        return Counter({"published": len(cells) - quarantined, "quarantined": quarantined})


def sources(workspace: Path | None, store: Store, api: PrefectApi) -> list[Source]:
    """All that is asked for metrics.

    Parameters
    ----------
    workspace : path, optional
        Whose supervisor and disk are asked too.
    store : Store
    api : PrefectApi
    """
    here: list[Source] = []
    if workspace is not None:
        place = Workspace(workspace=workspace)
        here = [Source("services", lambda: services(place)), Source("disk", lambda: disk(workspace))]
    return [
        *here,
        Source("landing", Landing(store).read, every=STATES_SECONDS),
        Source("storage", lambda: storage(store), every=STORAGE_SECONDS),
        Source("night", lambda: night(api), every=STATES_SECONDS),
    ]


def main() -> None:
    """Serve the metrics of what the environment names, and of the workspace in the arguments where there is one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    workspace = Path(sys.argv[1]) if sys.argv[1:] else None
    collector = Sources(sources(workspace, store_address(Workspace()).open(), PrefectApi(os.environ)))
    port, password = int(os.environ["CMSEG_METRICS_PORT"]), os.environ.get("CMSEG_METRICS_PASSWORD", "")
    with server(collector, port, password, os.environ.get("CMSEG_METRICS_HOST", LOOPBACK)) as running:
        running.serve_forever()


if __name__ == "__main__":
    main()
