"""A registered model states what goes in, what comes out and what it needs, and MLflow itself can load it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml

from cmseg_core.organelles.model import OrganelleModel, load_model, save_model
from cmseg_core.organelles.network import build_unet
from cmseg_core.schema import C_MEROLAE
from cmseg_core.storage.manifest import file_sha256
from cmseg_core.tracking.connection import connect, default_tracking_uri
from cmseg_core.tracking.registry import register_file, resolve_model

ARCHITECTURE = {"classes": 6, "section_size": None, "width": 2, "depth": 2, "attention": True, "channels_in": 3}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return default_tracking_uri(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = build_unet(**ARCHITECTURE)
    return save_model(
        OrganelleModel(network, C_MEROLAE, 16, 1.5, {"architecture": ARCHITECTURE}), tmp_path / "my model.keras"
    )


def test_mlflow_shows_and_loads_a_registered_network(
    uri: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.keras
    import mlflow.pyfunc

    register_file(model, "m.logged", "unet", uri)
    found = resolve_model("models:/m.logged/1", "unet", uri, tmp_path / "cache")
    assert found.sha256 == file_sha256(model)
    folder = found.path.parent
    described = yaml.safe_load((folder / "MLmodel").read_text())
    assert described["flavors"]["cmseg"]["sha256"] == found.sha256
    requirements = (folder / "requirements.txt").read_text().split()
    assert f"keras=={version('keras')}" in requirements
    assert not any("+" in line for line in requirements)

    sections = np.random.default_rng(0).random((2, 16, 16, 3), dtype=np.float32)
    expected = load_model(model).network.predict(sections, verbose=0)
    loaded = mlflow.pyfunc.load_model(str(folder))
    (given,), (made,) = loaded.metadata.signature.inputs.inputs, loaded.metadata.signature.outputs.inputs
    assert (given.shape, made.shape) == ((-1, 16, 16, 3), (-1, 16, 16, 6))
    assert np.allclose(loaded.predict(sections), expected, atol=1e-5)
    with pytest.raises(mlflow.MlflowException):
        loaded.predict(sections[:, :8])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    assert mlflow.keras.load_model("models:/m.logged/1").count_params() == load_model(model).network.count_params()


def test_other_files_state_what_they_need(uri: str, tmp_path: Path) -> None:
    (tmp_path / "cells.pt").write_bytes(b"weights")
    (tmp_path / "other.keras").write_bytes(b"PK of somebody else")
    for file, role in (("cells.pt", "sam"), ("other.keras", "unet")):
        register_file(tmp_path / file, f"m-{role}", role, uri)
        folder = resolve_model(f"models:/m-{role}/1", role, uri, tmp_path / "cache").path.parent
        described = yaml.safe_load((folder / "MLmodel").read_text())
        assert described["flavors"] == {"cmseg": described["flavors"]["cmseg"]}
        assert "numpy" in (folder / "requirements.txt").read_text()


def test_a_model_that_cannot_be_kept_is_marked_as_failed(
    uri: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(MlflowClient, "log_model_artifact", full)
    with pytest.raises(OSError, match="no space"):
        register_file(model, "m-full", "unet", uri)
    client = connect(uri)
    experiment = client.get_experiment_by_name("cmseg-models")
    assert experiment is not None
    states = {m.name: m.status for m in client.search_logged_models([experiment.experiment_id])}
    assert states["m-full"] == "FAILED"
