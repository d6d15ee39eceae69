"""What Prometheus scrapes: right about the store, closed to strangers, and not broken by what does not answer."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from cmseg_core.errors import InputError
from cmseg_core.schema import Acquisition, VoxelSize
from cmseg_core.storage.buckets import ensure_bucket
from cmseg_core.storage.manifest import build
from cmseg_core.storage.stages import canonical_json
from cmseg_core.storage.store import Store
from deployments.metrics_server import Source, Sources, server
from deployments.object_store import ObjectStoreService, object_store
from deployments.prefect_server import PrefectApi, client_environment
from deployments.processes import free_ports
from deployments.service import answer
from deployments.stack import Secrets, Stack, StackSettings
from deployments.supervisor import ServiceState, State
from flows import metrics
from tasks.claims import claim
from tasks.landing import quarantine

PASSWORD = "the password"
EXAMPLES = Path(metrics.__file__).parents[1] / "deployments" / "prometheus"
ENDED = {"state_type": "FAILED", "start_time": "2026-03-01T22:00:00Z", "end_time": "2026-03-02T01:30:00Z"}
TOKEN = b64encode(b"cmseg:secret").decode()
"""With which the stand-in for Prefect is called."""
Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """Name and values of the labels, to the value."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextmanager
def serving(collector: Sources) -> Iterator[str]:
    (port,) = free_ports(1)
    with server(collector, port, PASSWORD) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{port}/metrics"
        running.shutdown()


def scraped(*sources: Source, within: float = 60) -> Samples:
    """What a scrape over HTTP says."""
    with serving(Sources(sources, within)) as url:
        answer = httpx.get(url, auth=("cmseg", PASSWORD), timeout=90, trust_env=False)
    assert answer.status_code == 200
    return samples(answer.text)


class Prefect(BaseHTTPRequestHandler):
    """Stands in for Prefect's server: it knows one night that ended."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = asked["deployments"]["name"]["any_"] == ["night"] and asked["limit"] == 1
        body = json.dumps([ENDED] if known else []).encode()
        self.send_response(200 if self.headers["Authorization"] == f"Basic {TOKEN}" else 401)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture
def prefect() -> Iterator[dict[str, str]]:
    """Variables under which the stand-in is reached."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Prefect) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield client_environment(running.server_port, "secret")
        running.shutdown()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that is up with one service, which is this process."""
    stack = Stack(tmp_path / "site")
    here = psutil.Process()
    lives = ServiceState(name="Prefect", pid=here.pid, created=here.create_time(), restarts=2)
    gone = ServiceState(name="MLflow", pid=here.pid, created=1.0, restarts=0)
    with stack.held():
        stack.state.write_text(State(phase="up", pid=here.pid, services=(lives, gone)).model_dump_json())
        yield stack


def submit(store: Store, name: str, size: int = 1000) -> None:
    acquisition = Acquisition(
        name=name, source="data/stack.tif", sha256="0" * 64, bytes=size, voxel_size=VoxelSize(z=1, y=1, x=1)
    )
    store.put(f"incoming/{name}/acquisition.json", canonical_json(acquisition))


def publish(store: Store, name: str, folder: Path, cells: int, bad: int) -> None:
    for cell in range(1, cells + 1):
        (folder / "cells" / str(cell)).mkdir(parents=True)
        for file in ("image.tif", "model.glb"):
            (folder / "cells" / str(cell) / file).write_bytes(b"x")
    submit(store, name)
    acquisition = Acquisition.model_validate_json(store.get(f"incoming/{name}/acquisition.json"))
    build(folder, acquisition, {}, {}, {}, {}, {str(cell + 1): "too dark" for cell in range(bad)})
    store.upload_tree(folder, f"acquisitions/{name}")


def test_states_are_those_of_the_store(s3_store: Store, stack: Stack, prefect: dict[str, str], tmp_path: Path) -> None:
    submit(s3_store, "monday", 3000)
    submit(s3_store, "tuesday", 400)
    submit(s3_store, "tuesday@2", 50)
    s3_store.put("incoming/half/data/stack.tif", b"its acquisition.json is not there yet")
    submit(s3_store, "running")
    mine = claim(s3_store, "running")
    assert mine is not None
    submit(s3_store, "bad")
    quarantine(s3_store, "bad", "is blank", "take it again", "input")
    publish(s3_store, "done", tmp_path / "done", cells=5, bad=2)
    publish(s3_store, "small", tmp_path / "small", cells=1, bad=0)
    with mine.kept():
        told = scraped(*metrics.sources(stack.workspace, s3_store, PrefectApi(prefect)))
    states = {name[1]: value for name, value in told.items() if name[0] == "cmseg_acquisitions"}
    assert states == {"waiting": 3, "running": 1, "published": 2, "quarantined": 1}
    assert told["cmseg_waiting_bytes",] == 3450
    assert 0 < told["cmseg_waiting_oldest_age_seconds",] < 120
    assert told["cmseg_cells", "published"] == 4 and told["cmseg_cells", "quarantined"] == 2
    assert told["cmseg_store_objects", "incoming"] == 8 and told["cmseg_store_bytes", "acquisitions"] > 0
    assert told["cmseg_service_up", "Prefect"] == 1 and told["cmseg_service_up", "MLflow"] == 0
    assert told["cmseg_service_restarts_total", "Prefect"] == 2
    assert told["cmseg_service_resident_memory_bytes", "Prefect"] > 1e7
    assert told["cmseg_service_cpu_seconds_total", "Prefect"] > 0
    assert 0 < told["cmseg_workspace_free_bytes",] < told["cmseg_workspace_size_bytes",]
    assert told["cmseg_night_last_duration_seconds",] == timedelta(hours=3.5).total_seconds()
    assert told["cmseg_night_last_end_timestamp_seconds",] == datetime.fromisoformat(ENDED["end_time"]).timestamp()
    assert told["cmseg_night_last_state", "failed"] == 1 and told["cmseg_night_last_state", "completed"] == 0
    assert {name[1] for name, value in told.items() if name[0] == "cmseg_metrics_source_up" and value == 1} == {
        "services", "disk", "landing", "storage", "night"
    }  # fmt: skip


def test_what_waits_is_published_the_next_time(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    landing = metrics.Landing(store)

    def count() -> dict[str, float]:
        return {sample.labels["state"]: sample.value for sample in landing.read()[0].samples}

    assert set(count().values()) == {0}
    submit(store, "monday")
    assert count()["waiting"] == 1
    publish(store, "monday", tmp_path / "monday", cells=2, bad=0)
    assert count() == {"waiting": 0, "running": 0, "published": 1, "quarantined": 0}
    read: list[str] = []
    genuine = Store.get
    monkeypatch.setattr(Store, "get", lambda self, key: read.append(key) or genuine(self, key))
    assert count()["published"] == 1
    assert read == []  # no manifest is read twice


@pytest.mark.parametrize("auth", [None, ("cmseg", "wrong"), ("cmseg", ""), ("somebody", PASSWORD)])
def test_strangers_are_refused(auth: tuple[str, str] | None) -> None:
    asked: list[str] = []
    with serving(Sources([Source("any", lambda: asked.append("asked") or [])])) as url:
        for address in (url, url.removesuffix("metrics"), f"{url}?name[]=cmseg_cells"):
            assert httpx.get(address, auth=auth, trust_env=False).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Basic \u00ff".encode("latin-1")}).status_code == 401
        assert asked == []
        assert httpx.get(f"{url}/other", auth=("cmseg", PASSWORD), trust_env=False).status_code == 404


def test_without_a_password_nothing_is_served() -> None:
    with pytest.raises(InputError, match="CMSEG_METRICS_PASSWORD"):
        server(Sources([Source("any", lambda: [])]), free_ports(1)[0], "")


def test_a_dead_store_and_a_dead_prefect_break_nothing(stack: Stack, tmp_path: Path, s3_store: Store) -> None:
    nobody, neither = free_ports(2)
    dead = Store.open(s3_store.uri, endpoint=f"http://127.0.0.1:{nobody}")
    told = scraped(*metrics.sources(stack.workspace, dead, PrefectApi(client_environment(neither, "secret"))), within=3)
    up = {name[1]: value for name, value in told.items() if name[0] == "cmseg_metrics_source_up"}
    assert up == {"services": 1, "disk": 1, "landing": 0, "storage": 0, "night": 0}
    assert ("cmseg_service_up", "Prefect") in told and ("cmseg_workspace_free_bytes",) in told
    assert not [name for name in told if name[0].startswith(("cmseg_night", "cmseg_acquisitions", "cmseg_waiting"))]


def test_without_a_supervisor_the_rest_is_told(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    told = scraped(*metrics.sources(tmp_path, store, PrefectApi(client_environment(free_ports(1)[0], "secret"))))
    assert told["cmseg_metrics_source_up", "services"] == 0
    assert told["cmseg_acquisitions", "waiting"] == 0


def test_one_that_hangs_is_not_waited_for_and_counts_later() -> None:
    answers, quick = threading.Event(), GaugeMetricFamily("quick", "Comes at once.", 1)

    def hangs() -> list[GaugeMetricFamily]:
        answers.wait(60)
        return [GaugeMetricFamily("slow", "Takes long.", 1)]

    both = Sources([Source("quick", lambda: [quick]), Source("slow", hangs, every=60)], within=0.2)
    begun = time.monotonic()
    with ThreadPoolExecutor(50) as scrapes:  # none waits for another
        told = list(scrapes.map(lambda _: names(both), range(50)))
    assert time.monotonic() - begun < 5
    assert all(one == {"cmseg_metrics_source_up", "quick"} for one in told)
    answers.set()
    deadline = time.monotonic() + 30
    while "slow" not in names(both):
        assert time.monotonic() < deadline


def test_an_old_answer_is_not_told_for_ever() -> None:
    fails: list[bool] = []

    def read() -> list[GaugeMetricFamily]:
        if fails:
            raise OSError("the service does not answer")
        return [GaugeMetricFamily("told", "Once.", 1)]

    kept = Sources([Source("one", read, every=0.2)])
    assert "told" in names(kept)
    fails.append(True)
    assert "told" in names(kept)  # still good, and not asked anew
    time.sleep(0.3)
    assert "told" not in names(kept)
    fails.clear()
    assert "told" in names(kept)  # a failure is no answer that is good for a while


def names(collector: Sources) -> set[str]:
    return {metric.name for metric in collector.collect()}


def test_an_existing_workspace_gets_the_new_secret_and_keeps_the_others(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    made = stack.secrets()
    path = stack.folder / "secrets.json"
    former = {name: value for name, value in json.loads(path.read_text()).items() if name != "metrics"}
    path.write_text(json.dumps(former))
    path.chmod(0o600)
    again = stack.secrets()
    assert again.model_dump(exclude={"metrics"}) == former == made.model_dump(exclude={"metrics"})
    assert len(again.metrics) >= 32 and again.metrics not in former.values()
    assert stack.secrets() == again == Secrets.model_validate_json(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_service_runs_is_small_and_may_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_port, port, nobody = free_ports(3)
    stack, settings = Stack(tmp_path), StackSettings(s3_port=s3_port, metrics_port=port, prefect_port=nobody)
    (service,) = (one for one in stack.services(settings) if one.name == "metrics")
    stack.logs.mkdir()
    for name, value in stack.store_environment(settings, "cmseg").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CMSEG_METRICS_HOST", "0.0.0.0")  # is for the container's program alone
    store = stack.store_environment(settings, "metrics")
    with object_store(stack.folder / "s3", port=s3_port):
        ensure_bucket("s3://cmseg")
        submit(Store.open("s3://cmseg"), "monday")
        process = service.start(within=60)
        assert process is not None, service.log.read_text()
        try:
            url = f"http://127.0.0.1:{port}/metrics"
            told = samples(httpx.get(url, auth=("cmseg", stack.secrets().metrics), timeout=20, trust_env=False).text)
            assert told["cmseg_acquisitions", "waiting"] == 1 and told["cmseg_waiting_bytes",] == 1000
            assert told["cmseg_metrics_source_up", "storage"] == 1
            assert psutil.Process(process.pid).memory_info().rss < 150e6
            command = Path(f"/proc/{process.pid}/cmdline").read_text()
            assert [secret for secret in stack.secrets().model_dump().values() if secret in command] == []
            assert answer(f"http://127.0.0.2:{port}/metrics") == 0
        finally:
            service.stop(process)
        for name, value in store.items():
            monkeypatch.setenv(name, value)
        reader = Store.open("s3://cmseg")
        assert reader.list() == ["incoming/monday/acquisition.json"]
        for refused in (lambda: reader.put("incoming/other", b"x"), lambda: reader.put("work/other", b"x")):
            with pytest.raises(InputError, match="access was refused"):
                refused()


def container() -> dict[str, Any]:
    """The service in Compose."""
    return yaml.safe_load((EXAMPLES.parent / "compose" / "compose.yaml").read_text())["services"]["metrics"]


def test_it_runs_by_what_its_container_gets(
    s3: ObjectStoreService, s3_store: Store, prefect: dict[str, str], tmp_path: Path
) -> None:
    submit(s3_store, "monday")
    (port,) = free_ports(1)
    here = {**s3.environment(), **prefect, "CMSEG_STORE": s3_store.uri}
    here |= {"CMSEG_METRICS_PORT": str(port), "CMSEG_METRICS_PASSWORD": PASSWORD}
    compose = container()
    # Without TLS here, and without the authority.
    given = {name: value for name, value in compose["environment"].items() if "ca.crt" not in value}
    environment = {name: here.get(name, value) for name, value in given.items()}
    assert "$" not in "".join(environment.values())
    command = [sys.executable, *compose["command"][1:]]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.2:{port}/metrics"  # it listens on more than 127.0.0.1
        deadline = time.monotonic() + 60
        while answer(url) != 401:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        assert answer(url, auth=("cmseg", "wrong")) == 401
        told = samples(httpx.get(url, auth=("cmseg", PASSWORD), timeout=20, trust_env=False).text)
        sources = {name[1]: value for name, value in told.items() if name[0] == "cmseg_metrics_source_up"}
        assert sources == {"landing": 1, "storage": 1, "night": 1}
        assert told["cmseg_acquisitions", "waiting"] == 1 and told["cmseg_night_last_state", "failed"] == 1
        check = compose["healthcheck"]["test"][-1]
        assert "localhost:9108" in check
        subprocess.run([sys.executable, "-c", check.replace("9108", str(port))], check=True, env={})
    finally:
        process.terminate()
        process.wait()
    text = (tmp_path / "log").read_text()
    assert [secret for secret in (PASSWORD, s3.secret_key, "secret") if secret in text] == []


def test_it_imports_no_network_of_neurons_and_no_tracker() -> None:
    code = (
        "import sys, flows.metrics; print(*{'torch', 'tensorflow', 'mlflow', 'prefect', 'keras'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == ""


@pytest.fixture
def exported(stack: Stack, prefect: dict[str, str], tmp_path: Path) -> set[str]:
    """Names of all that is exported."""
    store = Store.open(tmp_path / "store")
    submit(store, "monday")
    return {name[0] for name in scraped(*metrics.sources(stack.workspace, store, PrefectApi(prefect)))}


def used_names(expressions: list[str]) -> set[str]:
    return {name for expression in expressions for name in re.findall(r"\bcmseg_\w+", expression)}


def expressions_of_the_dashboard() -> list[str]:
    panels = json.loads((EXAMPLES / "dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def expressions_of_the_alerts() -> list[str]:
    groups = yaml.safe_load((EXAMPLES / "alerts.yaml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("expressions", [expressions_of_the_dashboard, expressions_of_the_alerts])
def test_dashboard_and_alerts_use_what_is_exported(exported: set[str], expressions: Callable[[], list[str]]) -> None:
    assert used_names(expressions()) - exported == set()
    for expression in expressions():
        assert used_names([expression]) or expression.startswith("up{")


def test_the_dashboard_shows_all_that_is_exported(exported: set[str]) -> None:
    assert exported - used_names(expressions_of_the_dashboard()) == set()
    dashboard = json.loads((EXAMPLES / "dashboard.json").read_text())
    (variable,) = dashboard["templating"]["list"]
    assert variable["type"] == "datasource" and variable["query"] == "prometheus"
    sources = [panel["datasource"]["uid"] for panel in dashboard["panels"] if panel["type"] != "row"]
    assert set(sources) == {"${datasource}"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_page_names_all_that_is_exported(exported: set[str]) -> None:
    page = (Path(metrics.__file__).parents[1] / "docs" / "metrics.md").read_text()
    assert {name for name in exported if f"`{name}" not in page} == set()


def test_the_example_asks_the_right_door(exported: set[str]) -> None:
    (job,) = yaml.safe_load((EXAMPLES / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["basic_auth"]["username"] == "cmseg" and job.get("metrics_path", "/metrics") == "/metrics"
    (target,) = job["static_configs"][0]["targets"]
    assert target == f"127.0.0.1:{StackSettings.model_fields['metrics_port'].default}"
    compose = container()
    assert compose["ports"] == [f"{target}:{compose['environment']['CMSEG_METRICS_PORT']}"]
