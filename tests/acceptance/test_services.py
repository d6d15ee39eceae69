"""``cmseg up``: real services, the night on its schedule, and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import psutil
import pytest
import tifffile
from botocore.exceptions import ClientError

from deployments.processes import free_ports
from tests.acceptance.conftest import Cmseg, Outcome

PORTS = ("CMSEG_S3_PORT", "CMSEG_POSTGRES_PORT", "CMSEG_MLFLOW_PORT", "CMSEG_PREFECT_PORT", "CMSEG_METRICS_PORT")


@dataclass(frozen=True)
class Site:
    """A workspace whose services are up."""

    workspace: Path
    variables: dict[str, str]
    cmseg: Cmseg
    alerts: list[str]

    def __call__(self, *arguments: object, **variables: str) -> Outcome:
        return self.cmseg(*arguments, **{**self.variables, **variables})

    def processes(self) -> dict[str, dict[str, Any]]:
        state = json.loads((self.workspace / "stack" / "state.json").read_text())
        return {service["name"]: service for service in state["services"]} | {"supervisor": {"pid": state["pid"]}}

    def environment(self) -> dict[str, str]:
        """Under which Prefect's own commands reach it."""
        groups = json.loads((self.workspace / "stack" / "environment.json").read_text())
        return {**os.environ, **{name: value for group in groups for name, value in group.items()}}

    def deployment(self, name: str, **parameters: object) -> subprocess.CompletedProcess[str]:
        """Begin a deployment with parameters."""
        command = [sys.executable, "-m", "prefect", "deployment", "run", name, "--params", json.dumps(parameters)]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)

    def finished(self, flow: str) -> bool:
        """Whether a run of a flow has completed."""
        known = self.environment()
        auth = tuple(known["PREFECT_API_AUTH_STRING"].split(":", 1))
        asked = {"flows": {"name": {"any_": [flow]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        answer = httpx.post(f"{known['PREFECT_API_URL']}/flow_runs/count", json=asked, auth=auth, trust_env=False)
        return answer.json() > 0

    def states(self) -> dict[str, str]:
        listed = self("status", "--json").document()["acquisitions"]
        return {one["name"]: one["state"] for one in listed}


def known_to(site: Site) -> list[str]:
    """References of the models in the registry."""
    listed = site("models", "list", "--json").document()
    return [one["reference"] for one in listed["models"]]


def soon(condition: Callable[[], bool], within: float = 120) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def lives(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def site(alone: Cmseg, unet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Services on free ports, whose night begins in two to three minutes."""
    workspace = tmp_path_factory.mktemp("site")
    *free, own = free_ports(len(PORTS) + 1)
    ports = dict(zip(PORTS, map(str, free), strict=True))
    alerts: list[str] = []
    night = (datetime.now(UTC) + timedelta(minutes=3)).strftime("%H:%M")
    settings = {"CMSEG_NIGHT": night, "CMSEG_FOREGROUND__METHOD": "threshold", "CMSEG_UNET": str(unet),
                "CMSEG_STAGE_MODEL": "rule", "CMSEG_ALERT_WEBHOOK": f"http://127.0.0.1:{own}/"}  # fmt: skip
    here = Site(workspace, {"CMSEG_WORKSPACE": str(workspace), **ports, **settings}, alone, alerts)
    made = here("up", timeout=280)
    assert made.status == 0, made.err
    with ThreadingHTTPServer(("127.0.0.1", own), lambda *given: Listener(alerts, *given)) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            yield here
        finally:
            listener.shutdown()
            here("down", "--now")


class Listener(BaseHTTPRequestHandler):
    """Takes what the alerts say."""

    def __init__(self, alerts: list[str], *given: Any) -> None:
        self.alerts = alerts
        super().__init__(*given)

    def do_POST(self) -> None:
        self.alerts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *given: Any) -> None:
        pass


@pytest.mark.timeout(600)
def test_the_night_begins_on_its_schedule(site: Site, phantom: Path) -> None:
    for name in ("monday", "tuesday"):
        assert site("submit", phantom, "--name", name).status == 0
    assert site.states() == {"monday": "waiting", "tuesday": "waiting"}
    soon(lambda: set(site.states().values()) == {"published"}, within=420)


def test_up_once_more_finds_it_up(site: Site) -> None:
    before = site.processes()
    again = site("up", "--json")
    assert again.status == 0
    assert again.document()["pages"]["Prefect"].endswith(site.variables["CMSEG_PREFECT_PORT"])
    assert site.processes() == before
    other = site("up", CMSEG_NIGHT="03:33")
    assert other.status == 0
    assert "up with other settings" in other.err and "03:33" not in other.out


def test_prometheus_is_told_of_the_night(site: Site) -> None:
    password = json.loads((site.workspace / "stack" / "secrets.json").read_text())["metrics"]
    url = f"http://127.0.0.1:{site.variables['CMSEG_METRICS_PORT']}/metrics"

    def told() -> list[str]:
        return httpx.get(url, auth=("cmseg", password), timeout=30, trust_env=False).text.splitlines()

    soon(lambda: 'cmseg_night_last_state{state="completed"} 1.0' in told())
    lines = told()
    assert 'cmseg_acquisitions{state="published"} 2.0' in lines
    for source in ("services", "disk", "landing", "storage", "night"):
        assert f'cmseg_metrics_source_up{{source="{source}"}} 1.0' in lines
    for service in site.processes().keys() - {"supervisor"}:
        assert f'cmseg_service_up{{service="{service}"}} 1.0' in lines


def test_looking_at_the_services_shuts_none_out(site: Site) -> None:
    import psycopg

    def restarts() -> dict[str, int]:
        return {one["name"]: one["restarts"] for one in site("status", "--json").document()["services"]}

    before = restarts()
    password = json.loads((site.workspace / "stack" / "secrets.json").read_text())["postgres"]
    address = f"postgresql://cmseg:{password}@127.0.0.1:{site.variables['CMSEG_POSTGRES_PORT']}/prefect"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CHECKPOINT")  # opens its files anew, under an account of its own where root began all this
    assert restarts() == before


def test_strangers_are_refused(site: Site) -> None:
    prefect, mlflow = (
        f"http://127.0.0.1:{site.variables[name]}" for name in ("CMSEG_PREFECT_PORT", "CMSEG_MLFLOW_PORT")
    )
    assert status_of(f"{prefect}/api/flows/count") == 401
    assert status_of(f"{mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0") == 401
    assert status_of(f"http://127.0.0.1:{site.variables['CMSEG_S3_PORT']}/cmseg") == 403
    assert status_of(f"http://127.0.0.1:{site.variables['CMSEG_METRICS_PORT']}/metrics") == 401
    for page in (f"{prefect}/api/flows/count", f"{mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0"):
        assert httpx.get(page, auth=("cmseg", "wrong")).status_code == 401, page
    import psycopg

    for who in ("cmseg:wrong", "cmseg", "postgres", "nobody"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://{who}@127.0.0.1:{site.variables['CMSEG_POSTGRES_PORT']}/prefect")


def test_the_worker_can_neither_change_nor_delete_raw_data(site: Site, phantom: Path) -> None:
    assert site("submit", phantom, "--name", "raw").status == 0
    identities = json.loads((site.workspace / "stack" / "s3" / "s3.json").read_text())["identities"]
    (keys,) = next(one["credentials"] for one in identities if one["name"] == "worker")
    endpoint = f"http://127.0.0.1:{site.variables['CMSEG_S3_PORT']}"
    session = boto3.Session(keys["accessKey"], keys["secretKey"])
    client = session.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    raw = "incoming/raw/acquisition.json"
    before = client.get_object(Bucket="cmseg", Key=raw)["Body"].read()
    for refused in (
        lambda: client.delete_object(Bucket="cmseg", Key=raw),
        lambda: client.put_object(Bucket="cmseg", Key=raw, Body=b""),
        lambda: client.copy_object(Bucket="cmseg", Key=raw, CopySource="cmseg/incoming/raw/acquisition.json"),
        lambda: client.delete_bucket(Bucket="cmseg"),
        lambda: client.put_bucket_versioning(Bucket="cmseg", VersioningConfiguration={"Status": "Suspended"}),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            refused()
    client.delete_objects(Bucket="cmseg", Delete={"Objects": [{"Key": raw}]})
    assert client.get_object(Bucket="cmseg", Key=raw)["Body"].read() == before


def test_secrets_are_in_private_files_alone(site: Site) -> None:
    folder = site.workspace / "stack"
    secrets = list(json.loads((folder / "secrets.json").read_text()).values())
    for identity in json.loads((folder / "s3" / "s3.json").read_text())["identities"]:
        secrets.append(identity["credentials"][0]["secretKey"])
    for process in site.processes().values():
        command = Path(f"/proc/{process['pid']}/cmdline").read_bytes()
        assert not [secret for secret in secrets if secret.encode() in command]
    for path in folder.rglob("*"):
        if (
            path.is_file()
            and "postgres" not in path.parts
            and path.suffix in {".json", ".log", ".ini", ".toml", ".options"}
        ):
            told = [secret for secret in secrets if secret.encode() in path.read_bytes()]
            assert not told or stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert not told or path.suffix != ".log", path


def test_a_quarantine_is_told(site: Site, tmp_path: Path) -> None:
    blank = tmp_path / "blank.tif"
    tifffile.imwrite(blank, np.full((20, 40, 40), 7, np.uint8), photometric="minisblack")
    assert site("submit", blank, "--name", "blank", "--voxel-size", 50, 50, 50).status == 0
    assert site("nightly", "blank").status == 3
    soon(lambda: any("blank was quarantined" in text and "every section is blank" in text for text in site.alerts))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_models_are_trained_and_scored_from_the_pages(site: Site, phantom: Path) -> None:
    assert site("dataset", "create", "three").status == 0
    files = [f"--{kind}={phantom / name}.tif" for kind, name in
             (("image", "stack"), ("labels", "organelles"), ("cells", "cells"))]  # fmt: skip
    added = site("dataset", "add", "three", *files, "--voxel-size", 60, 60, 60)
    assert added.status == 0, added.err
    tiny = {"width": 4, "depth": 3, "section_size": 32, "epochs": 1, "steps_per_epoch": 2, "batch_size": 2}
    known = known_to(site)
    unknown = site.deployment("train/train", dataset="three", model="oracle")
    assert unknown.returncode != 0 and "oracle" in unknown.stdout + unknown.stderr
    begun = site.deployment("train/train", dataset="three", validation="none", settings=tiny)
    assert begun.returncode == 0, begun.stderr
    soon(lambda: len(known_to(site)) > len(known), within=400)
    (made,) = set(known_to(site)) - set(known)
    begun = site.deployment("evaluate/evaluate", dataset="three", model=made)
    assert begun.returncode == 0, begun.stderr
    soon(lambda: site.finished("evaluate"), within=400)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_whose_process_is_killed_goes_on(site: Site, tmp_path: Path) -> None:
    made = site("phantom", tmp_path / "large", "--cells", 5, "--voxel-size", 40, 40, 40)
    assert made.status == 0, made.err
    assert site("submit", tmp_path / "large", "--name", "large").status == 0
    assert site.deployment("nightly/night").returncode == 0
    soon(lambda: site.states()["large"] == "running")
    # Not the command of the worker alone, but the flow that it started.
    children = psutil.Process(site.processes()["worker"]["pid"]).children(recursive=True)
    assert children
    for child in children:
        child.kill()
    soon(lambda: site.states()["large"] == "published", within=400)
    assert any("Crashed" in text for text in site.alerts)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["object store", "PostgreSQL", "MLflow", "Prefect", "worker"])
def test_a_service_that_is_killed_comes_back(site: Site, phantom: Path, name: str) -> None:
    before = site.processes()[name]
    os.kill(before["pid"], signal.SIGKILL)
    soon(lambda: site.processes()[name]["pid"] not in (None, before["pid"]), within=200)
    assert site.processes()[name]["restarts"] == before["restarts"] + 1
    own = name.replace(" ", "-").lower()
    assert site("submit", phantom, "--name", own).status == 0
    done = site("nightly", own)
    assert done.status == 0, done.err
    assert site.states()[own] == "published"
    assert site("models", "list").status == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_up_after_the_supervisor_was_killed(site: Site) -> None:
    before = site.states()
    os.kill(site.processes()["supervisor"]["pid"], signal.SIGKILL)
    soon(lambda: "its services are down" in site("status").err)
    again = site("up", timeout=280)
    assert again.status == 0, again.err
    assert site.states() == before


@pytest.mark.timeout(600)
def test_down_ends_everything_and_keeps_what_was_done(site: Site) -> None:
    before, processes = site.states(), site.processes()
    assert site("down").status == 0
    soon(lambda: not any(lives(process["pid"]) for process in processes.values()), within=5)
    assert "its services are down; start them with `cmseg up`" in site("status").complaint()
    assert site("down").status == 0
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(site.variables["CMSEG_MLFLOW_PORT"])))
        other.listen()
        refused = site("up")
    assert refused.status == 2
    assert f"port {site.variables['CMSEG_MLFLOW_PORT']}: is in use" in refused.complaint()
    assert "CMSEG_MLFLOW_PORT" in refused.complaint()
    assert site("up", timeout=280).status == 0
    assert site.states() == before


@pytest.mark.parametrize(
    ("variable", "value"), [("CMSEG_TIME_ZONE", "Atlantis"), ("CMSEG_NIGHT", "25:00"), ("CMSEG_S3_PORT", "0")]
)
def test_bad_settings_are_one_line(alone: Cmseg, tmp_path: Path, variable: str, value: str) -> None:
    refused = alone("up", CMSEG_WORKSPACE=str(tmp_path / "site"), **{variable: value})
    assert refused.status == 2
    assert variable.removeprefix("CMSEG_").lower() in refused.complaint()
    assert not (tmp_path / "site").exists()
