"""Fixtures shared by all tests: real data, a workspace of its own, and a real S3 service."""

from __future__ import annotations

import hashlib
import os

# Before any numeric library is imported: tests share the machine, and results must not depend on its size.
for _name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "TF_NUM_INTRAOP", "TF_NUM_INTEROP"):
    os.environ.setdefault(f"{_name}_NUM_THREADS" if not _name.startswith("TF") else f"{_name}_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not hold up the services of the tests
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cmseg_core.storage.buckets import ensure_bucket
from cmseg_core.storage.store import Store
from deployments.object_store import ObjectStoreService, object_store

REPOSITORY = Path(__file__).resolve().parents[1]
_OF_THE_USER = ("AWS_", "CMSEG_", "MLFLOW_S3", "MLFLOW_TRACKING", "MLFLOW_REGISTRY")
"""Variables that would lead a test to somebody's services or settings."""
_KEPT = {"AWS_CA_BUNDLE", "CMSEG_TEST_DATA"}


@pytest.fixture(scope="session", autouse=True)
def _nobodys_services() -> Iterator[None]:
    """No test reaches the services, the settings or the credentials of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_OF_THE_USER) and name not in _KEPT:
                patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        yield


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Find a folder or file of the real test data by name; the test is skipped where it is absent."""
    root = Path(os.environ.get("CMSEG_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"the test data {path} is absent; CMSEG_TEST_DATA names the folder that holds it")
        return path

    return find


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace that every command and flow of the test uses."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.setenv("CMSEG_WORKSPACE", str(folder))
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreService]:
    """A real S3 service on loopback. Its credentials are not in the environment: see `s3_env` and `s3_store`."""
    with object_store(tmp_path_factory.mktemp("s3")) as service:
        yield service


@pytest.fixture
def s3_env(s3: ObjectStoreService, monkeypatch: pytest.MonkeyPatch) -> ObjectStoreService:
    """The S3 service, with the environment set so that stores find it."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def s3_store(s3_env: ObjectStoreService, request: pytest.FixtureRequest) -> Store:
    """A store on the S3 service under a prefix that no other test uses."""
    ensure_bucket("s3://cmseg-tests")
    return Store.open(f"s3://cmseg-tests/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]}")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The test runs twice: on a local folder and on S3."""
    return Store.open(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_store")
