"""Tiny nights with real services behind a proxy that harms their calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

from cmseg_core.phantom import draw_field, write_acquisition
from cmseg_core.schema import C_MEROLAE, VoxelSize
from cmseg_core.storage.buckets import ensure_bucket
from cmseg_core.storage.store import Store
from deployments import mlflow_server
from deployments.object_store import object_store
from deployments.processes import free_ports
from deployments.service import Service, answer
from flows.submit import submit
from tests.faults.proxy import Call, Plan, Proxy, unharmed

BUCKET = "s3://nights"
REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "tiny"


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
        Claims that nobody let go of.
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
    """

    proxy: Proxy
    acquisition: Path
    log: Path
    endpoint: str
    launcher: subprocess.Popen[str]

    def submit(self, night: str) -> Store:
        """The store of a night of its own, with the acquisition submitted."""
        store = Store.open(f"{BUCKET}/{night}", endpoint=self.endpoint)
        truth = {f"truth_{kind}": str(self.acquisition / f"{kind}.tif") for kind in ("cells", "organelles")}
        submit(str(self.acquisition / "stack.tif"), NAME, store, **truth)
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
        repeated: list[str] = []
        if statuses[0]:
            done = _finished(store)
            statuses.append(self.run(night))
            repeated = sorted(done & {_key(call) for call in self.proxy.calls if call.method == "PUT"})
        else:
            written = [_key(call) for call in calls if call.method == "PUT" and call not in harmed]
            repeated = sorted({key for key in written if _is_mark(key) and written.count(key) > 1})
        return Ending(statuses, harmed, published(store), repeated, store.list("work/claims"))

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


def _finished(store: Store) -> set[str]:
    return {key for key in store.list("work") if _is_mark(key)}


@contextmanager
def nights(folder: Path, acquisition: Path, unet: Path, settings: Mapping[str, str] | None = None) -> Iterator[Nights]:
    """Start the services, register the network as champion, and make ready to run nights."""
    s3_folder, prefect_folder, mlflow_folder = (folder / name for name in ("s3", "prefect", "mlflow"))
    for each in (prefect_folder, mlflow_folder):
        each.mkdir(parents=True)
    prefect_port, mlflow_port = free_ports(2)
    with ExitStack() as stack:
        s3 = stack.enter_context(object_store(s3_folder))
        mlflow = mlflow_server.mlflow_service(
            mlflow_folder,
            mlflow_port,
            password="a-password-of-tests",
            signing_key="tests",
            database=f"sqlite:///{mlflow_folder}/mlflow.db",
            artifacts=str(mlflow_folder / "files"),
            store={},
            log=folder / "mlflow.log",
        )
        prefect = Service(
            name="Prefect",
            command=(sys.executable, "-m", "prefect", "server", "start", "--port", str(prefect_port)),
            folder=prefect_folder,
            log=folder / "prefect.log",
            healthy=lambda: answer(f"http://127.0.0.1:{prefect_port}/api/health") == 200,
            environment={"PREFECT_HOME": str(prefect_folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        )
        for service in (mlflow, prefect):
            process = service.start()
            if process is None:
                raise RuntimeError(f"{service.name} did not start; see {service.log}")
            stack.callback(service.stop, process)
        proxy = stack.enter_context(
            Proxy(
                {
                    "store": s3.endpoint,
                    "prefect": f"http://127.0.0.1:{prefect_port}/api",
                    "mlflow": f"http://127.0.0.1:{mlflow_port}",
                }
            )
        )
        access = {
            **s3.environment(),
            **mlflow_server.client_environment(mlflow_port, "a-password-of-tests"),
        }
        stack.enter_context(mock.patch.dict(os.environ, access))
        ensure_bucket(BUCKET, endpoint=s3.endpoint)
        _register(unet, access["MLFLOW_TRACKING_URI"])
        environment = {
            **os.environ,
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
        stack.callback(_end, launcher)
        assert launcher.stdout is not None and launcher.stdout.readline() == "ready\n"
        yield Nights(proxy, acquisition, log, s3.endpoint, launcher)


def _register(unet: Path, tracking_uri: str) -> None:
    from cmseg_core.tracking.registry import register_file

    register_file(unet, "cmseg-unet", "unet", tracking_uri, alias="champion")


def _end(launcher: subprocess.Popen[str]) -> None:
    launcher.kill()
    launcher.communicate()
