"""A model file as a logged model of MLflow: the plain file, and beside it what MLflow needs to show and load it.

The file is not saved anew. Of the ``.keras`` archives MLflow's Keras flavour can load the network as they are, whereas
its own way to log a model would drop the member that carries taxonomy, section size and calibration.
"""

from __future__ import annotations

import platform
import re
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

import cmseg_core
from cmseg_core.errors import InputError
from cmseg_core.organelles.metadata import read_metadata
from cmseg_core.storage.manifest import file_sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import Model, ModelSignature

_REQUIRED = {
    ".keras": ("mlflow", "keras", "tensorflow-cpu", "tensorflow", "numpy"),
    ".pt": ("torch", "segment-anything", "numpy"),
    ".pth": ("torch", "segment-anything", "numpy"),
}
"""What loads such a file. Of the two builds of TensorFlow the one that is installed is named."""


def log_model(client: MlflowClient, path: Path, name: str, role: str, run_id: str) -> LoggedModel:
    """Log a model file as an outcome of a run.

    Parameters
    ----------
    client : MlflowClient
    path : path
    name : str
        For people.
    role : str
        What the model is for.
    run_id : str
        A run that is under way.

    Returns
    -------
    LoggedModel
        Its artifacts: the file as it is, ``MLmodel``, ``requirements.txt`` and ``python_env.yaml``. For a ``.keras``
        file of cmseg ``MLmodel`` states the signature, and MLflow's Keras and Python flavours load it.
    """
    from mlflow.entities import LoggedModelOutput

    logged = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=re.sub(r"[/:.%\"']", "-", name),
        source_run_id=run_id,
        tags={"role": role},
        model_type=role,
    )
    status = "FAILED"
    try:
        with tempfile.TemporaryDirectory() as folder:
            _describe(Path(folder), path, role, logged, run_id)
            client.log_model_artifacts(logged.model_id, folder)
        client.log_model_artifact(logged.model_id, str(path))
        status = "READY"
    finally:
        client.finalize_logged_model(logged.model_id, status)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged


def _describe(folder: Path, path: Path, role: str, logged: LoggedModel, run_id: str) -> None:
    from mlflow.models import Model

    model = Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
    model.model_size_bytes = path.stat().st_size
    model.add_flavor("cmseg", version=cmseg_core.__version__, role=role, data=path.name, sha256=file_sha256(path))
    requirements = _requirements(path)
    if path.suffix == ".keras":
        _add_keras(model, path)
    model.save(str(folder / "MLmodel"))
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(yaml.safe_dump(environment), encoding="utf-8")


def _add_keras(model: Model, path: Path) -> None:
    from mlflow import pyfunc

    try:
        model.signature = _signature(read_metadata(path))
    except (InputError, KeyError, TypeError, ValueError):
        return  # an archive that is none of ours is kept as the file that it is
    # The flavour adds the ending to the name itself.
    model.add_flavor("keras", data=path.stem, keras_version=version("keras"), save_exported_model=False)
    pyfunc.add_to_model(model, loader_module="mlflow.keras", python_env="python_env.yaml")


def _signature(content: dict[str, Any]) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    size, channels = int(content["section_size"]), int(content["metadata"]["architecture"]["channels_in"])
    classes = len(content["taxonomy"]["classes"])
    float32 = np.dtype(np.float32)
    return ModelSignature(
        Schema([TensorSpec(float32, (-1, size, size, channels))]),
        Schema([TensorSpec(float32, (-1, size, size, classes))]),
    )


def _requirements(path: Path) -> list[str]:
    found = []
    for package in _REQUIRED.get(path.suffix, ()):
        try:
            # A build for one processor (2.13.0+cpu) is on no public index.
            found.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return found
