"""Tiny nights with real services behind a proxy that harms their calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from unittest import mock
from urllib.parse import unquote, urlsplit

import psutil

from cmseg_core.phantom import draw_field, write_acquisition
from cmseg_core.schema import C_MEROLAE, VoxelSize
from cmseg_core.storage.buckets import ensure_bucket
from cmseg_core.storage.store import Store
from deployments.object_store import OWNER
from deployments.processes import end_group, free_ports
from deployments.stack import Stack, StackSettings
from deployments.supervisor import ServiceState, Supervisor, read_state
from flows.submit import submit
from tests.faults.proxy import Call, Plan, Proxy, unharmed

BUCKET = "s3://nights"
REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "tiny"
_PORTS = ("s3_port", "postgres_port", "mlflow_port", "prefect_port")


@dataclass(frozen=True)
class Ending:
    """What became of a harmed night.

    Attributes
    ----------
    statuses : list of int
        Of the processes, in turn: that of the harmed night, and of the one after it where that was needed.
    harmed : list of Call
    published : dict
        See `published`.
    repeated : list of str
        Keys of finished work that was done once more.
    left : list of str
        Claims that nobody let go of, and what was quarantined.
    """

    statuses: list[int]
    harmed: list[Call]
    published: dict[str, str]
    repeated: list[str]
    left: list[str]


@dataclass
class Nights:
    """Where nights are run.

    Attributes
    ----------
    proxy : Proxy
        In front of ``store``, ``prefect`` and ``mlflow``.
    acquisition : path
        Folder that `submit` takes.
    log : path
        What the nights print.
    state : path
        What the supervisor of the services writes down.
    """

    proxy: Proxy
    acquisition: Path
    log: Path
    endpoint: str
    launcher: subprocess.Popen[str]
    state: Path

    def submit(self, night: str) -> Store:
        """The store of a night of its own, with the acquisition submitted."""
        store = Store.open(f"{BUCKET}/{night}", endpoint=self.endpoint)
        stack, cells, organelles = (str(self.acquisition / f"{kind}.tif") for kind in ("stack", "cells", "organelles"))
        submit(stack, NAME, store, truth_cells=cells, truth_organelles=organelles)
        return store

    def run(self, night: str, plan: Plan = unharmed) -> int:
        """Exit status of the process of a night; -9 where it was killed."""
        self.proxy.begin(plan)
        self._say(json.dumps({"CMSEG_STORE": f"{BUCKET}/{night}", "CMSEG_S3_ENDPOINT": self.proxy.address("store")}))
        self.proxy.aim(int(self._heard()))
        self._say("")
        return int(self._heard())

    def endure(self, night: str, plan: Plan) -> Ending:
        """Run a night of its own that is harmed, and once more where it did not end well."""
        store = self.submit(night)
        statuses = [self.run(night, plan)]
        calls, harmed = self.proxy.calls, self.proxy.harmed
        self._settle()
        repeated: list[str] = []
        if statuses[0]:
            done = _finished(store)
            statuses.append(self.run(night))
            repeated = sorted(done & {_key(call) for call in self.proxy.calls if call.method == "PUT"})
        else:
            written = [_key(call) for call in calls if call.method == "PUT" and call not in harmed]
            repeated = sorted({key for key in written if _is_mark(key) and written.count(key) > 1})
        left = store.list("work/claims") + store.list("quarantine")
        return Ending(statuses, harmed, published(store), repeated, left)

    def services(self) -> dict[str, ServiceState]:
        """The services as their supervisor sees them, by name."""
        state = read_state(self.state)
        assert state is not None
        return {service.name: service for service in state.services}

    def kill(self, name: str) -> None:
        """Kill a service with all that it started; the supervisor starts it again."""
        pid = self.services()[name].pid
        assert pid is not None
        end_group(pid)

    def _settle(self) -> None:
        """Wait until the services that were killed are up again."""
        while not all(_lives(service.pid) for service in self.services().values()):
            time.sleep(0.5)

    def _say(self, line: str) -> None:
        assert self.launcher.stdin is not None
        self.launcher.stdin.write(f"{line}\n")
        self.launcher.stdin.flush()

    def _heard(self) -> str:
        assert self.launcher.stdout is not None
        line = self.launcher.stdout.readline()
        if not line:
            raise RuntimeError(f"the launcher ended; see {self.log}")
        return line.strip()


def published(store: Store) -> dict[str, str]:
    """SHA-256 of every published object, by key."""
    return {key: store.sha256(key) for key in store.list("acquisitions")}


def tiny_acquisition(folder: Path) -> Path:
    """Two cells of coarse voxels, with their truth."""
    if not folder.exists():
        write_acquisition(draw_field(3, cells=2, voxel_size=VoxelSize(z=80, y=70, x=70)), folder)
    return folder


def tiny_unet(path: Path) -> Path:
    """A network that was never trained: what it says is of no worth, but always the same."""
    from cmseg_core.organelles.model import OrganelleModel, save_model
    from cmseg_core.organelles.network import build_unet

    if not path.exists():
        save_model(OrganelleModel(build_unet(len(C_MEROLAE), 32, width=4, depth=2), C_MEROLAE, 32), path)
    return path


def changes(call: Call) -> bool:
    """Whether a call changes what a service keeps."""
    return call.method in ("PUT", "DELETE", "PATCH") or (call.method == "POST" and not call.target.endswith("/filter"))


def _key(call: Call) -> str:
    """Of the object that a call is about, in the store of its night."""
    return unquote(urlsplit(call.target).path).split("/", 3)[-1]


def _is_mark(key: str) -> bool:
    """Whether an object says that some work is finished."""
    return key.endswith("/_complete.json") or "/parts/" in key


def _lives(pid: int | None) -> bool:
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _finished(store: Store) -> set[str]:
    return {key for key in store.list("work") if _is_mark(key)}


@contextmanager
def nights(folder: Path, acquisition: Path, unet: Path, settings: Mapping[str, str] | None = None) -> Iterator[Nights]:
    """Start the services of ``cmseg up``, register the network as champion, and make ready to run nights."""
    stack = Stack(folder)
    ports = StackSettings(**dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True)))
    with ExitStack() as held:
        held.enter_context(mock.patch.dict(os.environ))
        held.enter_context(_supervised(stack, ports))
        s3 = stack.store_environment(ports, OWNER)
        _, mlflow, prefect = stack.environment()
        os.environ.update(s3 | mlflow)
        endpoint = s3["CMSEG_S3_ENDPOINT"]
        ensure_bucket(BUCKET, endpoint=endpoint)
        _register(unet, mlflow["MLFLOW_TRACKING_URI"], folder / "workspace" / "models")
        services = {"store": endpoint, "prefect": prefect["PREFECT_API_URL"], "mlflow": mlflow["MLFLOW_TRACKING_URI"]}
        proxy = held.enter_context(Proxy(services))
        environment = {
            **os.environ,
            **prefect,
            "CMSEG_WORKSPACE": str(folder / "workspace"),
            "CMSEG_FOREGROUND__METHOD": "threshold",
            "CMSEG_FOREGROUND__CELL_DIAMETER_PX": "32",
            "CMSEG_THREADS": "1",
            **dict.fromkeys(("MLFLOW_TRACKING_URI", "CMSEG_MLFLOW_TRACKING_URI"), proxy.address("mlflow")),
            "PREFECT_API_URL": proxy.address("prefect"),
            "PYTHONPATH": str(REPOSITORY),
            **(settings or {}),
        }
        log = folder / "nights.log"
        launcher = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.launcher", str(log)],
            env=environment,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        held.callback(_end, launcher)
        assert launcher.stdout is not None and launcher.stdout.readline() == "ready\n"
        yield Nights(proxy, acquisition, log, endpoint, launcher, stack.state)


@contextmanager
def _supervised(stack: Stack, ports: StackSettings) -> Iterator[None]:
    """Keep up what a night calls as the supervisor of ``cmseg up`` does: what dies is started again."""
    services = [service for service in stack.services(ports) if service.name not in ("worker", "metrics")]
    supervisor = Supervisor(services, stack.state, stack.log)
    with ExitStack() as held:
        held.enter_context(stack.held())
        held.callback(supervisor.stop)
        supervisor.start()
        # What a thread started does not outlive it: this one ends when all does.
        watch = Thread(target=supervisor.watch)
        watch.start()
        held.callback(watch.join)
        held.callback(supervisor.end)
        yield


def _register(unet: Path, tracking_uri: str, cache: Path) -> None:
    from cmseg_core.tracking.registry import CHAMPION, register_file, resolve_model

    register_file(unet, "cmseg-unet", "unet", tracking_uri, alias=CHAMPION)
    # Or the first night alone would fetch it, and its calls would have other numbers than those of the others.
    resolve_model(CHAMPION, "unet", tracking_uri, cache)


def _end(launcher: subprocess.Popen[str]) -> None:
    launcher.kill()
    launcher.communicate()
