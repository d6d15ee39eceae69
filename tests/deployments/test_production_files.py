"""The files for a laboratory's own servers: whole, closed, without secrets, and the same services as ``cmseg up``."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic_settings import BaseSettings

from cmseg_core.errors import InputError
from cmseg_core.schema import PipelineConfig, Workspace
from cmseg_core.storage.buckets import ensure_bucket
from cmseg_core.storage.store import Store
from deployments import mlflow_server, object_store, prefect_server, processes
from deployments.container import object_store as container
from deployments.container import worker
from deployments.stack import MAY_DO, StackSettings
from flows.environment import prepare
from flows.status import storage_use

ROOT = Path(__file__).parents[2]
COMPOSE, KUBERNETES = ROOT / "deployments" / "compose", ROOT / "deployments" / "kubernetes"
POOLS = ROOT / "deployments" / "work-pools"
POLICIES = json.loads((ROOT / "deployments" / "s3-policy.json").read_text(encoding="utf-8"))
ONCE = {"certificate", "setup"}
ON_DEMAND = {"people"}
OF_AWS = {
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE",
}  # fmt: skip
"""Those of botocore's and obstore's variables that the files may use."""
SECRET = re.compile(r"SECRET|PASSWORD|AUTH_STRING|DATABASE_CONNECTION_URL|BACKEND_STORE_URI")


def _manifests() -> dict[str, dict[str, Any]]:
    """Kubernetes manifests by kind."""
    found = [document for path in sorted(KUBERNETES.glob("*.yaml")) for document in _yaml(path)]
    return {document["kind"]: document for document in found if document["kind"] != "Kustomization"}


def _yaml(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def _pool(kind: str) -> dict[str, Any]:
    return json.loads((POOLS / f"{kind}.json").read_text(encoding="utf-8"))


def _environment(kind: str) -> dict[str, str]:
    return _pool(kind)["variables"]["properties"]["env"]["default"]


def _env_example() -> dict[str, str]:
    lines = (COMPOSE / "env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


compose: dict[str, Any] = _yaml(COMPOSE / "compose.yaml")[0]
services: dict[str, dict[str, Any]] = compose["services"]
manifests = _manifests()


# ---------------------------------------------------------------------------------------------- valid


def test_compose_file_is_valid() -> None:
    pytest.importorskip("check_jsonschema")
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text("utf-8"))
    jsonschema.validate(compose, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**compose, "services": {"worker": {"mem_limits": "1g"}}}, schema)


@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_manifests_are_valid(version: str) -> None:
    """The package with the schemas takes 110 MB, and is therefore no requirement of the tests."""
    validator = pytest.importorskip("kubernetes_validate")
    job = _filled(_pool("kubernetes")["job_configuration"]["job_manifest"], _pool("kubernetes")["variables"])
    for manifest in [*manifests.values(), job]:
        validator.validate(manifest, version, strict=True)


def test_kustomization_names_every_manifest_and_image() -> None:
    (kustomization,) = _yaml(KUBERNETES / "kustomization.yaml")
    present = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    assert set(kustomization["resources"]) == present | {"secret.yaml"}
    assert {image["name"] for image in kustomization["images"]} == {pod["containers"][0]["image"] for pod in _pods()}
    namespaces = {document["metadata"].get("namespace", "cmseg") for document in manifests.values()}
    assert namespaces == {kustomization["namespace"]} == {manifests["Namespace"]["metadata"]["name"]}


def test_every_image_is_pinned() -> None:
    (kustomization,) = _yaml(KUBERNETES / "kustomization.yaml")
    (base,) = re.findall(r"^FROM (\S+)$", (COMPOSE / "Dockerfile").read_text(encoding="utf-8"), re.M)
    images = {service["image"] for service in services.values()} | {base}
    images |= {f"{image['newName']}:{image['newTag']}" for image in kustomization["images"]}
    images.add(_pool("kubernetes")["variables"]["properties"]["image"]["default"])
    assert len(images) == 4
    assert [image for image in images if not re.search(r":\d+\.\d+(\.\d+)?(-[a-z-]+)?$", image)] == []


def test_image_holds_every_file_that_a_container_names() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (COMPOSE / "Dockerfile").read_text(encoding="utf-8"), re.M)
    sources = {source for line in copied for source in line.split()}
    ignored = (COMPOSE / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    commands = [*(service.get("command", "") for service in services.values()), *(pod["containers"] for pod in _pods())]
    named = set(re.findall(r"deployments/[a-z/_-]+\.[a-z]+", json.dumps(commands)))
    assert len(named) == 3
    assert {name for name in named if not (ROOT / name).is_file()} == set()
    assert os.access(COMPOSE / "certificate.sh", os.X_OK)
    modules = set(re.findall(r"(?:deployments|flows)(?:\.[a-z_]+)+", json.dumps(commands)))
    assert modules >= {"deployments.container.worker", "deployments.automations", "flows.metrics"}
    assert {name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()} == set()


def test_nothing_in_the_image_tells_others_of_its_use() -> None:
    text = (COMPOSE / "Dockerfile").read_text(encoding="utf-8")
    for switch in ("DO_NOT_TRACK=true", "PREFECT_SERVER_ANALYTICS_ENABLED=false", "MLFLOW_DISABLE_TELEMETRY=true"):
        assert re.search(rf"^(ENV)? .*{switch}", text, re.M), switch


# ---------------------------------------------------------------------------------------------- variables


def _variables() -> dict[str, set[str]]:
    """Variable to the files that set it."""
    found: dict[str, set[str]] = {}
    secret, settings = manifests["Secret"]["stringData"], manifests["ConfigMap"]["data"]
    named = (KUBERNETES / "configmap.yaml").read_text(encoding="utf-8")
    sources = {
        "compose.yaml": {name for service in services.values() for name in service.get("environment", {})},
        "env.example": set(_env_example()),
        "kubernetes": {*secret, *settings, *re.findall(r"^  # ([A-Z_]+):", named, re.M)},
        "work-pools": {name for kind in ("process", "kubernetes") for name in _environment(kind)},
    }
    for source, names in sources.items():
        for name in names:
            found.setdefault(name, set()).add(source)
    return found


def _settings(model: type[BaseSettings]) -> set[str]:
    return {f"CMSEG_{name.upper()}" for name in model.model_fields}


def test_runs_are_heard_of_in_time_wherever_they_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a command, by the worker of `cmseg up`, from the pools: three signs of life in the time that may be silent."""
    name = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
    monkeypatch.setattr(os, "environ", {key: value for key, value in os.environ.items() if key != name})
    prepare(Workspace(workspace=tmp_path))
    ours = prefect_server.worker_service(
        tmp_path, 1, password="", environment={}, named={}, at_once=1, log=tmp_path / "log"
    ).environment
    every = {place[name] for place in (os.environ, ours, *map(_environment, ("process", "kubernetes")))}
    (gone,) = (one for one in _yaml(ROOT / "deployments" / "automations.yaml")[0] if "process is gone" in one["name"])
    assert len(every) == 1
    assert 3 * int(every.pop()) <= gone["trigger"]["within"]


def test_every_flow_of_cmseg_is_known_to_be_gone_when_it_is() -> None:
    from flows.process_acquisition import process_acquisition

    (gone,) = (one for one in _yaml(ROOT / "deployments" / "automations.yaml")[0] if "process is gone" in one["name"])
    entries = [one["entrypoint"] for one in _yaml(ROOT / "deployments" / "prefect.yaml")[0]["deployments"]]
    flows = [getattr(import_module(entry.rpartition(".")[0]), entry.rpartition(".")[2]) for entry in entries]
    named = gone["trigger"]["match_related"]["prefect.resource.name"]
    assert sorted(named) == sorted(one.name for one in (*flows, process_acquisition))


def test_every_variable_is_known_to_who_reads_it() -> None:
    from mlflow import environment_variables
    from mlflow.cli import server
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names

    text = (ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8")
    known = _settings(Workspace) | _settings(PipelineConfig) | _settings(StackSettings) | OF_AWS
    known |= set(re.findall(r"\$(CMSEG_[A-Z_]+)", text)) | set(_get_valid_setting_names(Settings))
    known |= set(re.findall(r'"(CMSEG_[A-Z_]+)"', (ROOT / "flows" / "metrics.py").read_text(encoding="utf-8")))
    known |= {name for name in vars(environment_variables) if name.startswith("MLFLOW_")}
    known |= {option.envvar for option in server.params if isinstance(option.envvar, str)}
    variables = {name for name in _variables() if re.match(r"(CMSEG|PREFECT|AWS|MLFLOW)_", name)}
    assert len(variables) > 30
    assert {name: _variables()[name] for name in variables - known} == {}


def test_env_example_says_every_variable_of_the_compose_file() -> None:
    text = (COMPOSE / "compose.yaml").read_text(encoding="utf-8")
    example = _env_example()
    assert set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)", text)) == set(example)
    required = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+):\?\}", text))
    assert required == {name for name in example if name.startswith("SECRET_")}
    lines = (COMPOSE / "env.example").read_text(encoding="utf-8").splitlines()
    blocks = "\n".join(lines).split("\n\n")
    assert [block for block in blocks if not block.startswith("#")] == []


def test_deployments_find_the_variables_that_they_name() -> None:
    text = (ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"\$(CMSEG_[A-Z_]+)", text))
    assert named
    assert named <= set(services["setup"]["environment"])
    assert named <= set(manifests["ConfigMap"]["data"])


# ---------------------------------------------------------------------------------------------- secrets


def test_no_secret_stands_in_a_file() -> None:
    given = {name: value for name, value in _env_example().items() if SECRET.search(name)}
    assert len(given) > 8
    assert set(given.values()) == {""}
    assert set(manifests["Secret"]["stringData"].values()) == {""}
    assert not [name for name in manifests["ConfigMap"]["data"] if SECRET.search(name)]
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                bare = re.sub(r"\$\{[A-Z_]+:[?-]\}", "", value)
                assert re.fullmatch(r"(cmseg:|[a-z+]+://cmseg:@postgres:5432/[a-z]+)?", bare), (name, variable)


@pytest.mark.parametrize("path", ["compose/.env", "compose/settings.env", "kubernetes/secret.yaml"])
def test_files_with_secrets_are_ignored_by_git(path: str) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", f"deployments/{path}"], check=False)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 0


def test_each_container_gets_its_own_identity_alone() -> None:
    identities = {name: service.get("environment", {}).get("AWS_ACCESS_KEY_ID") for name, service in services.items()}
    assert {name: key for name, key in identities.items() if key} == {
        "mlflow": "mlflow", "setup": "cmseg", "worker": "worker", "people": "people", "metrics": "metrics",
    }  # fmt: skip
    for name, key in identities.items():
        if key:
            secret = services[name]["environment"]["AWS_SECRET_ACCESS_KEY"]
            assert secret == f"${{SECRET_STORE_{key.upper()}:?}}"
    given = {name for name in services["object-store"]["environment"] if name.startswith("SECRET_STORE_")}
    assert given == {f"SECRET_STORE_{name.upper()}" for name in (object_store.OWNER, *MAY_DO)}
    keys = {name for name, service in services.items() if "store-key:" in json.dumps(service.get("volumes", []))}
    assert keys == {"certificate", "object-store"}


# ---------------------------------------------------------------------------------------------- compose


def test_services_are_watched_bounded_and_closed() -> None:
    for name, service in services.items():
        assert "mem_limit" in service, name
        assert "no-new-privileges:true" in service["security_opt"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        if name in ONCE | ON_DEMAND:
            assert service["restart"] in ("no", "on-failure"), name
        else:
            assert service["restart"] == "unless-stopped", name
            assert {"test", "interval", "timeout", "retries", "start_period"} == set(service["healthcheck"]), name
        if service["image"].startswith("cmseg:"):
            assert service["read_only"] and service["cap_drop"] == ["ALL"], name
    published = {name for name, service in services.items() if "ports" in service}
    assert published == {"object-store", "mlflow", "prefect", "metrics"}


def test_whoever_calls_the_store_knows_its_authority() -> None:
    callers = {name for name, one in services.items() if "AWS_ACCESS_KEY_ID" in one.get("environment", {})}
    assert callers == {"mlflow", "setup", "worker", "people", "metrics"}
    for name in callers:
        environment = services[name]["environment"]
        assert environment["AWS_ENDPOINT_URL_S3"].startswith("https://object-store:")
        named = {environment[variable] for variable in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")}
        assert named == {"/etc/cmseg/ca/ca.crt"}
        assert "ca:/etc/cmseg/ca:ro" in services[name]["volumes"]


def test_services_wait_for_what_they_need() -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how == {"condition": wanted}, (name, other)
    needed = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert needed["worker"] == {"setup", "mlflow"}
    assert needed["setup"] == {"object-store", "prefect"}
    assert needed["object-store"] == needed["metrics"] == {"certificate"}


def test_mlflow_and_prefect_start_as_in_the_local_stack(tmp_path: Path) -> None:
    mlflow = mlflow_server.mlflow_service(
        tmp_path, 5001, password="-", signing_key="-", database="-", artifacts="s3://cmseg/mlflow",
        store=object_store.client_environment("-", "-", "-"), log=tmp_path / "log",
    )  # fmt: skip
    prefect = prefect_server.prefect_service(tmp_path, 4200, password="-", database="-", log=tmp_path / "log")
    for name, service in (("mlflow", mlflow), ("prefect", prefect)):
        environment = services[name]["environment"]
        # The server itself calls no server, and MLflow knows no setting of cmseg.
        wanted = set(service.environment) - {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "CMSEG_S3_ENDPOINT"}
        assert wanted <= set(environment), name
        for variable in ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_DISABLE_TELEMETRY", "OMP_NUM_THREADS",
                         "PREFECT_SERVER_ANALYTICS_ENABLED"):  # fmt: skip
            if variable in wanted:
                assert environment[variable] == service.environment[variable]
        words = " ".join(services[name]["command"]).replace("\\\n", " ").split()
        options = [str(part) for part in service.command[1:] if str(part) != processes.LOOPBACK]
        assert [option for option in options if option not in words] == []


# ---------------------------------------------------------------------------------------------- kubernetes


def _pods() -> list[dict[str, Any]]:
    return [manifests[kind]["spec"]["template"]["spec"] for kind in ("Deployment", "Job")]


def _filled(template: Any, variables: dict[str, Any]) -> Any:
    """A template with the defaults of its variables, as Prefect fills it; what has none falls out."""
    if isinstance(template, dict):
        filled = {key: _filled(value, variables) for key, value in template.items()}
        return {key: value for key, value in filled.items() if value is not None}
    if isinstance(template, list):
        return [_filled(value, variables) for value in template]
    found = re.fullmatch(r"\{\{ (\w+) \}\}(-?)", template) if isinstance(template, str) else None
    if found is None:
        return template
    if found[1] == "env":
        environment = variables["properties"]["env"]["default"]
        return [{"name": name, "value": value} for name, value in environment.items()]
    default = variables["properties"][found[1]].get("default")
    return f"{default or 'run'}{found[2]}" if found[2] else default


def test_pods_have_no_rights_and_bounds() -> None:
    pool = _pool("kubernetes")
    run = _filled(pool["job_configuration"]["job_manifest"], pool["variables"])["spec"]["template"]["spec"]
    for pod in [*_pods(), run]:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == manifests["ServiceAccount"]["metadata"]["name"]
        (each,) = pod["containers"]
        assert each["securityContext"]["readOnlyRootFilesystem"]
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert each["resources"]["limits"]["memory"] and each["resources"]["requests"]["memory"]
        sources = [manifests[kind]["metadata"]["name"] for kind in ("ConfigMap", "Secret")]
        assert each["envFrom"] == [{"configMapRef": {"name": sources[0]}}, {"secretRef": {"name": sources[1]}}]
        mounted = {mount["name"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert "/tmp" in {mount["mountPath"] for mount in each["volumeMounts"]}
    account = re.search(r"--uid (\d+)", (COMPOSE / "Dockerfile").read_text(encoding="utf-8"))
    assert account is not None and account[1] == "10001"


def test_memory_of_a_flow_fits_into_its_container() -> None:
    settings = manifests["ConfigMap"]["data"]
    flow, at_once = float(settings["CMSEG_MAX_MEMORY_GB"]), int(settings["CMSEG_RUNS_AT_ONCE"])
    limit = manifests["Deployment"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    assert flow * at_once < int(limit.removesuffix("Gi"))
    assert flow < int(_pool("kubernetes")["variables"]["properties"]["memory_limit"]["default"].removesuffix("Gi"))
    example = _env_example()
    together = float(example["CMSEG_MAX_MEMORY_GB"]) * int(example["CMSEG_RUNS_AT_ONCE"])
    assert together < int(example["WORKER_MEMORY"].removesuffix("g"))


def test_worker_keeps_its_workspace_and_gets_time_to_end() -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] == "workspace"
    ]
    assert claims == [manifests["PersistentVolumeClaim"]["metadata"]["name"]]
    places = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert places["workspace"] == manifests["ConfigMap"]["data"]["CMSEG_WORKSPACE"]
    assert manifests["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    assert pod["terminationGracePeriodSeconds"] >= 3600
    assert services["worker"]["stop_grace_period"] == f"{pod['terminationGracePeriodSeconds'] // 3600}h"


def test_nothing_calls_the_pods() -> None:
    policy = manifests["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in policy
    assert all(rule["ports"] for rule in policy["egress"])


# ---------------------------------------------------------------------------------------------- work pools


def test_process_pool_is_prefects_own_but_for_the_environment(tmp_path: Path) -> None:
    from prefect.workers.process import ProcessWorker

    pool, default = _pool("process"), ProcessWorker.get_default_base_job_template()
    environment = pool["variables"]["properties"]["env"].pop("default")
    assert pool == default
    local = prefect_server.worker_service(
        tmp_path, 4200, password="-", environment={}, named={}, at_once=1, log=tmp_path / "log"
    ).environment
    assert environment == {name: local[name] for name in environment}
    # A run that gives no sign of life is never found to be dead.
    of_flows = ("PREFECT_CLIENT", "PREFECT_FLOWS", "PREFECT_LOGGING")
    assert set(environment) == {name for name in local if name.startswith(of_flows)}
    assert _environment("kubernetes") == environment


@pytest.mark.parametrize("kind", ["process", "kubernetes"])
def test_templates_name_variables_that_there_are(kind: str) -> None:
    pool = _pool(kind)
    named = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(pool["job_configuration"])))
    assert named == set(pool["variables"]["properties"])


# ---------------------------------------------------------------------------------------------- S3 policy


def _granted(identity: str, action: str) -> set[str]:
    """Folders of the bucket in which an identity may do something."""
    found: set[str] = set()
    for statement in POLICIES[identity]["Statement"]:
        assert statement["Effect"] == "Allow"
        if action in _list(statement["Action"]):
            found |= {name.removeprefix("arn:aws:s3:::cmseg/") for name in _list(statement["Resource"])}
    return found


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize("identity", MAY_DO)
def test_policy_grants_what_the_local_store_grants(identity: str) -> None:
    writes = {action.removeprefix("Write:cmseg/") for action in MAY_DO[identity] if action.startswith("Write:")}
    assert _granted(identity, "s3:PutObject") == writes
    assert _granted(identity, "s3:AbortMultipartUpload") == writes
    assert _granted(identity, "s3:DeleteObject") == writes & {"work/*"}
    actions = {action for one in POLICIES[identity]["Statement"] for action in _list(one["Action"])}
    assert actions <= {
        "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject",
    } | ({"s3:ListBucketVersions"} if identity == "people" else set())  # fmt: skip
    reads = {"mlflow/*"} if identity == "mlflow" else {"incoming/*", "acquisitions/*", "quarantine/*"}
    assert reads <= _granted(identity, "s3:GetObject") or _granted(identity, "s3:GetObject") == {"*"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], None]]:
    """A real store under these policies, with an object in every folder; sets the environment to an identity."""
    folder = tmp_path_factory.mktemp("guarded")
    object_store.credentials(folder)
    settings = json.loads((folder / "s3.json").read_text(encoding="utf-8"))
    settings["identities"] += [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": f"key-of-{name}"}], "policyNames": [name]}
        for name in POLICIES
    ]
    settings["policies"] = [{"name": name, "content": json.dumps(policy)} for name, policy in POLICIES.items()]
    (folder / "s3.json").write_text(json.dumps(settings), encoding="utf-8")
    with object_store.object_store(folder) as service, pytest.MonkeyPatch.context() as patch:
        for name, value in service.environment().items():
            patch.setenv(name, value)
        ensure_bucket("s3://cmseg")
        for place in ("incoming", "datasets", "acquisitions", "quarantine", "work", "mlflow"):
            Store.open("s3://cmseg").put(f"{place}/a", b"first")

        def be(identity: str) -> None:
            patch.setenv("AWS_ACCESS_KEY_ID", identity)
            patch.setenv("AWS_SECRET_ACCESS_KEY", f"key-of-{identity}")

        yield be


@pytest.mark.parametrize(
    ("identity", "reads", "writes"),
    [
        ("worker", "incoming datasets acquisitions quarantine work", "acquisitions quarantine work"),
        ("people", "incoming datasets acquisitions quarantine work", "incoming datasets acquisitions quarantine work"),
        ("mlflow", "mlflow", "mlflow"),
        ("metrics", "incoming datasets acquisitions quarantine work mlflow", ""),
    ],
)
def test_a_store_under_the_policy(
    guarded: Callable[[str], None], tmp_path: Path, identity: str, reads: str, writes: str
) -> None:
    guarded(identity)
    store = Store.open("s3://cmseg")
    (tmp_path / "large").write_bytes(bytes(12_000_000))  # goes up in parts
    allowed: dict[str, set[str]] = {"reads": set(), "writes": set(), "uploads": set()}
    for place in ("incoming", "datasets", "acquisitions", "quarantine", "work", "mlflow"):
        calls: dict[str, Callable[[], object]] = {
            "reads": lambda place=place: store.get(f"{place}/a"),
            "writes": lambda place=place: store.put_if_absent(f"{place}/{identity}", b"new"),
            "uploads": lambda place=place: store.upload_file(tmp_path / "large", f"{place}/{identity}-large"),
        }
        for name, call in calls.items():
            try:
                call()
            except InputError:
                continue
            allowed[name].add(place)
    assert allowed == {"reads": set(reads.split()), "writes": set(writes.split()), "uploads": set(writes.split())}
    if identity != "mlflow":
        assert "incoming/a" in store.list()


def test_people_see_what_former_versions_take(guarded: Callable[[str], None]) -> None:
    guarded("people")
    store = Store.open("s3://cmseg")
    store.put("work/twice", b"former")
    store.put("work/twice", b"now")
    assert {one["folder"]: one["former"] for one in storage_use(store)}["work/twice"] == len(b"former")
    guarded("metrics")
    assert {one["former"] for one in storage_use(Store.open("s3://cmseg"))} == {None}


def test_raw_data_outlives_the_worker(guarded: Callable[[str], None]) -> None:
    from cmseg_core.storage.buckets import s3_client

    guarded("worker")
    client, store = s3_client(), Store.open("s3://cmseg")
    store.put("work/stage/a", b"1")
    assert store.delete("work/stage") == 1
    for key in ("incoming/a", "datasets/a", "acquisitions/a", "quarantine/a", "mlflow/a"):
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            client.delete_object(Bucket="cmseg", Key=key)
    for call in (client.delete_bucket, client.get_bucket_lifecycle_configuration):
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            call(Bucket="cmseg")
    assert store.get("incoming/a") == b"first"


def test_owner_makes_the_bucket_and_reads_nothing(guarded: Callable[[str], None]) -> None:
    guarded("owner")
    assert ensure_bucket("s3://cmseg") is False
    with pytest.raises(InputError, match="refused"):
        Store.open("s3://cmseg").get("incoming/a")


# ---------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    (folder / "public").mkdir()
    command = [str(COMPOSE / "certificate.sh"), str(folder), str(folder / "public")]
    subprocess.run(command, check=True, capture_output=True)
    made = (folder / "store.crt").read_bytes()
    subprocess.run(command, check=True, capture_output=True)
    assert (folder / "store.crt").read_bytes() == made
    return folder


@pytest.fixture(scope="module")
def encrypted(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[int]]]:
    """The store as its container starts it: its address and its ports."""
    folder = tmp_path_factory.mktemp("container")
    ports = [*processes.free_ports(8), 0, 0]
    while not (ports[8] and ports[8] < 55_000 and processes.port_is_free(ports[8] + 10_000)):
        (ports[8],) = processes.free_ports(1)
    ports[9] = ports[8] + 10_000
    secrets = {"SECRET_STORE_CMSEG": "of-the-owner", "SECRET_STORE_WORKER": "of-the-worker", "SECRET_STORE_PEOPLE": "",
               "SECRET_STORE_METRICS": "of-the-metrics"}  # fmt: skip
    command = container.configure(folder, certificates, secrets, ports)
    assert not [secret for secret in secrets.values() if secret and secret in " ".join(command)]
    process = processes.start(command, folder=folder, log=folder / "log")
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _greets(ports[0], certificates):
            time.sleep(0.2)
        yield f"https://localhost:{ports[0]}", ports
    finally:
        processes.stop(process, patience=5)


def _greets(port: int, certificates: Path, *, name: str = "localhost") -> bool:
    """Whether S3 answers on a port under a certificate of the authority for `name`."""
    context = ssl.create_default_context(cafile=str(certificates / "public" / "ca.crt"))
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=name) as talk,
        ):
            talk.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b" 403 " in talk.recv(64)
    except OSError:
        return False


@pytest.fixture
def as_worker(
    encrypted: tuple[str, list[int]], certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], None]:
    """Sets the environment to that of an identity, which trusts the store's authority."""

    def be(identity: str, secret: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", encrypted[0])
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", identity)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        monkeypatch.delenv("SSL_CERT_DIR", raising=False)
        for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(certificates / "public" / "ca.crt"))

    return be


def test_store_is_used_by_tls_under_an_authority_of_the_environment(as_worker: Callable[[str, str], None]) -> None:
    as_worker("cmseg", "of-the-owner")
    ensure_bucket("s3://cmseg")
    owner = Store.open("s3://cmseg")
    owner.put("incoming/a", b"raw")
    as_worker("worker", "of-the-worker")
    store = Store.open("s3://cmseg")
    assert store.put_if_absent("work/a", b"1")
    assert store.get("incoming/a") == b"raw"
    with pytest.raises(InputError, match="refused"):
        store.put("incoming/a", b"other")
    as_worker("metrics", "of-the-metrics")
    reader = Store.open("s3://cmseg")
    assert reader.get("work/a") == b"1"
    with pytest.raises(InputError, match="refused"):
        reader.put("work/a", b"other")
    as_worker("people", "")
    with pytest.raises(InputError, match="refused"):
        Store.open("s3://cmseg").get("incoming/a")


def test_store_is_refused_where_nobody_vouches_for_it(
    as_worker: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    as_worker("cmseg", "of-the-owner")
    ensure_bucket("s3://cmseg")
    Store.open("s3://cmseg").put("work/b", b"1")
    other = tmp_path / "other"
    (other / "public").mkdir(parents=True)
    subprocess.run([COMPOSE / "certificate.sh", other, other / "public"], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(other / "public" / "ca.crt"))
    with pytest.raises(ConnectionError):
        Store.open("s3://cmseg").get("work/b")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(other / "public" / "ca.crt"))
    with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        ensure_bucket("s3://cmseg")


def test_certificate_is_for_the_names_of_the_store_alone(encrypted: tuple[str, list[int]], certificates: Path) -> None:
    port = encrypted[1][0]
    names = ("object-store", "localhost", "127.0.0.1", "elsewhere.example.org")
    assert [name for name in names if _greets(port, certificates, name=name)] == list(names[:3])
    assert (certificates / "store.key").stat().st_mode & 0o077 == 0
    assert not list(certificates.rglob("ca.key"))


@pytest.mark.parametrize("server", [3, 5, 7, 9])
def test_servers_behind_the_store_ask_for_a_certificate(
    encrypted: tuple[str, list[int]], certificates: Path, server: int
) -> None:
    """The network of the containers reaches them: who gets in there passes by every right that S3 knows."""

    def speaks(*, known: bool) -> bool:
        context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        context.set_alpn_protocols(["h2"])
        if known:
            context.load_cert_chain(certificates / "store.crt", certificates / "store.key")
        try:
            with (
                socket.create_connection(("127.0.0.1", encrypted[1][server]), timeout=5) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as talk,
            ):
                talk.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
                return bool(talk.recv(9))
        except OSError:
            return False

    assert speaks(known=True)
    assert not speaks(known=False)


def test_a_store_without_an_owner_does_not_start(tmp_path: Path, certificates: Path) -> None:
    with pytest.raises(InputError, match="SECRET_STORE_CMSEG"):
        container.configure(tmp_path, certificates, {"SECRET_STORE_WORKER": "a"})


_PREFECT = """
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    print("error" if client.api_healthcheck() else "reached")
"""
_MLFLOW = """
import os
from cmseg_core.tracking.connection import connect
print("reached", connect(os.environ["MLFLOW_TRACKING_URI"]).get_experiment("0").name)
"""


class _Page(BaseHTTPRequestHandler):
    """As much of either server as its client asks for here."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"experiment": {"experiment_id": "0", "name": "Default", "lifecycle_stage": "active"}}')

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "variable"), [(_PREFECT, "PREFECT_API_SSL_CERT_FILE"), (_MLFLOW, "REQUESTS_CA_BUNDLE")]
)
def test_clients_reach_servers_by_tls_where_they_know_the_authority(
    certificates: Path, tmp_path: Path, code: str, variable: str
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "store.crt", certificates / "store.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"https://localhost:{server.server_port}"
    known = {name: value for name, value in os.environ.items() if not name.startswith(("SSL_", "REQUESTS_", "CURL_"))}
    known |= {"PREFECT_API_URL": f"{address}/api", "PREFECT_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": address}
    known |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    said = []
    try:
        for more in ({}, {variable: str(certificates / "public" / "ca.crt")}):
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, env=known | more, capture_output=True, text=True, check=False
            )
            said.append("reached" in done.stdout)
    finally:
        server.shutdown()
        server.server_close()
    assert said == [False, True]


# ---------------------------------------------------------------------------------------------- worker

_WITH_A_RUN = (
    "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'import time; time.sleep(3)']); time.sleep(60)"
)


@pytest.mark.parametrize(("signals", "waits"), [(1, True), (2, False)])
def test_worker_lets_running_flows_end(monkeypatch: pytest.MonkeyPatch, signals: int, waits: bool) -> None:
    said: list[bool] = []
    monkeypatch.setattr(worker, "_pause", said.append)
    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(worker, "QUIET_SECONDS", 1.0)
    requests = worker.Requests.__new__(worker.Requests)
    requests.count = signals
    process = subprocess.Popen([sys.executable, "-c", _WITH_A_RUN])
    began = time.monotonic()
    worker._drain(process, requests)
    assert process.poll() is not None
    assert (time.monotonic() - began > 3) is waits
    assert time.monotonic() - began < 30
    assert said == [True, False]
