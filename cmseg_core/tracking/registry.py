"""Models by reference: packaged, a file, or a registered version.

A registered model is its plain file, with a description of it beside (:mod:`cmseg_core.tracking.logged`). The plain
file keeps its hash, so that a version can be checked against it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmseg_core.errors import InputError
from cmseg_core.schema import Frozen
from cmseg_core.storage.manifest import file_sha256
from cmseg_core.tracking.catalogue import RegisteredVersion, check_name, describe, find_alias, search
from cmseg_core.tracking.connection import SQLITE, connect, database, experiment_id, reported
from cmseg_core.tracking.logged import log_model
from cmseg_core.tracking.official import OFFICIAL, fetched_checkpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient

Role = Literal["unet", "sam", "stage"]

PACKAGED: dict[Role, str] = {
    "unet": "organelles/models/unet-starter.keras",
    "sam": "foreground/models/sam-starter.pt",
    "stage": "morphology/models/stage-starter.json",
}
"""The starter models, relative to the package cmseg_core."""
MODEL_NAMES: dict[Role, str] = {"unet": "cmseg-unet", "sam": "cmseg-sam", "stage": "cmseg-stage"}
"""Names under which the models of this pipeline are registered."""
SUFFIXES: dict[Role, tuple[str, ...]] = {"unet": (".keras",), "sam": (".pt", ".pth"), "stage": (".json",)}
CHAMPION = "champion"
CHALLENGER = "challenger"
FORMER = "former"
EXPERIMENT = "cmseg-models"


class ResolvedModel(Frozen):
    """A model that is at hand as a file.

    Attributes
    ----------
    role : {"unet", "sam", "stage"}
    reference : str
        What was asked for; an alias is kept as it was given.
    version : str
        Version in the registry, ``packaged``, ``official`` or ``file``.
    sha256 : str
        Hash of the file: the part of a model that belongs into stage keys.
    path : path
    """

    role: Role
    reference: str
    version: str
    sha256: str
    path: Path


def resolve_model(reference: str, role: Role, tracking_uri: str, cache: str | Path) -> ResolvedModel:
    """Find a model, and fetch it where it lies in the registry.

    Parameters
    ----------
    reference : str
        ``champion`` (the packaged model where the registry has none), ``challenger``, ``packaged``, a file,
        ``models:/name/version``, ``models:/name@alias``, or for `sam` the name of an official checkpoint that was
        fetched (:mod:`cmseg_core.tracking.official`).
    role : {"unet", "sam", "stage"}
    tracking_uri : str
        Of the MLflow server or SQLite file; looked at only where the reference leads there.
    cache : path
        Folder that keeps fetched models, by name and version.

    Raises
    ------
    InputError
        Where there is no such model, it is of the wrong kind, or its content differs from what was registered.
    ConnectionError
        Where the registry cannot be reached.
    """
    reference = full_reference(reference, role, tracking_uri)
    if reference == "packaged":
        path = packaged_model(role)
        return ResolvedModel(role=role, reference=reference, version="packaged", sha256=file_sha256(path), path=path)
    if reference.startswith("models:"):
        found = describe(reference, tracking_uri)
        path = _fetched(found, role, tracking_uri, Path(cache))
        return ResolvedModel(role=role, reference=reference, version=found.version, sha256=file_sha256(path), path=path)
    if role == "sam" and reference in OFFICIAL:
        path = fetched_checkpoint(reference, Path(cache))
        sha256 = OFFICIAL[reference].sha256
        return ResolvedModel(role=role, reference=reference, version="official", sha256=sha256, path=path)
    path = Path(reference).expanduser().absolute()
    if not path.is_file():
        mend = "give champion, challenger, packaged, a file, models:/name/version or models:/name@alias"
        raise InputError(reference, "is no model", mend)
    _check_suffix(path, role)
    return ResolvedModel(role=role, reference=reference, version="file", sha256=file_sha256(path), path=path)


def full_reference(reference: str, role: Role, tracking_uri: str) -> str:
    """What the words ``champion`` and ``challenger`` stand for; any other reference as it is.

    The champion is ``models:/name@champion``, or ``packaged`` where the registry has none; a registry that was never
    written to is not asked.
    """
    name = MODEL_NAMES[role]
    if reference == CHALLENGER:
        return f"models:/{name}@{CHALLENGER}"
    if reference != CHAMPION:
        return reference
    if tracking_uri.startswith(SQLITE) and not database(tracking_uri).exists():
        return "packaged"
    return "packaged" if find_alias(name, CHAMPION, tracking_uri) is None else f"models:/{name}@{CHAMPION}"


def pinned_reference(reference: str, role: Role, tracking_uri: str) -> str:
    """The version that a word or an alias stands for now, as ``models:/name/version``; any other reference as it is.

    Raises
    ------
    InputError
        Where there is no such version.
    ConnectionError
        Where the registry cannot be reached.
    """
    reference = full_reference(reference, role, tracking_uri)
    if not reference.startswith("models:") or "@" not in reference:
        return reference
    found = describe(reference, tracking_uri)
    return f"models:/{found.name}/{found.version}"


def packaged_model(role: Role) -> Path:
    """Path of the starter model that comes with the package."""
    path = Path(str(files("cmseg_core").joinpath(PACKAGED[role])))
    if not path.is_file():
        raise InputError(path, "the packaged model is absent", "install cmseg anew, or name a model of your own")
    return path


def register_file(
    path: str | Path,
    name: str,
    role: Role,
    tracking_uri: str,
    *,
    alias: str | None = None,
    tags: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, object] | None = None,
    run_id: str | None = None,
) -> str:
    """Register a model file as a new version of `name`.

    Parameters
    ----------
    path : path
        A ``.keras`` file, SAM weights (``.pt``, ``.pth``), or a stage classifier (``.json``).
    name : str
    role : {"unet", "sam", "stage"}
    tracking_uri : str
    alias : str, optional
        Given to the new version, for example ``challenger``.
    tags : mapping, optional
        Added to the tags ``role`` and ``sha256`` of the version.
    metrics, params : mapping, optional
        Logged with the run.
    run_id : str, optional
        Run that made the model; by default a new run that holds just the file.

    Returns
    -------
    str
        The number of the new version.

    Raises
    ------
    InputError
        Where the file is absent or of the wrong kind, or the name is not valid.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "is not a file", "give the file of a model")
    _check_suffix(path, role)
    check_name(name)
    client = connect(tracking_uri)
    with reported(name):
        own_run = run_id is None
        if own_run:
            experiment = experiment_id(client, tracking_uri, EXPERIMENT)
            run_id = client.create_run(experiment, run_name=f"{name} {path.name}").info.run_id
        for key, value in (params or {}).items():
            client.log_param(run_id, key, value)
        for key, number in (metrics or {}).items():
            client.log_metric(run_id, key, number)
        logged = log_model(client, path, name, role, run_id)
        if own_run:
            client.set_terminated(run_id)
        _ensure_name(client, name)
        made = client.create_model_version(
            name,
            source=logged.artifact_location,
            run_id=run_id,
            model_id=logged.model_id,
            tags={**(tags or {}), "role": role, "sha256": file_sha256(path), "file": path.name},
        )
        if alias:
            client.set_registered_model_alias(name, alias, str(made.version))
    return str(made.version)


def ensure_champion(role: Role, tracking_uri: str) -> RegisteredVersion:
    """The champion of a role, which is the packaged starter model where there was none; it is then registered."""
    client, name = connect(tracking_uri), MODEL_NAMES[role]
    champion = find_alias(name, CHAMPION, tracking_uri)
    if champion is not None:  # somebody promoted it
        return champion
    path = packaged_model(role)
    with reported(name):
        known = search(client, f"name = '{name}' and tag.sha256 = '{file_sha256(path)}'")
        version = str(known[0].version) if known else register_file(path, name, role, tracking_uri)
        client.set_registered_model_alias(name, CHAMPION, version)
    return describe(f"models:/{name}@{CHAMPION}", tracking_uri)


def ensure_champions(tracking_uri: str) -> dict[Role, str]:
    """Register the packaged starter models once, as champions where there are none yet.

    Returns
    -------
    dict of str to str
        Role to the reference ``models:/name@champion``.
    """
    for role in MODEL_NAMES:
        ensure_champion(role, tracking_uri)
    return {role: f"models:/{name}@{CHAMPION}" for role, name in MODEL_NAMES.items()}


def _fetched(found: RegisteredVersion, role: Role, tracking_uri: str, cache: Path) -> Path:
    """The file of a version from the cache, fetched where it is not there yet."""
    registered = found.tags.get("role")
    if registered not in {None, role}:
        raise InputError(found.reference, f"is a model for {registered}, not for {role}", "choose another model")
    # Numbers repeat from registry to registry; the run within the artifacts' address does not.
    folder = cache / found.name / f"{found.version}-{found.run_id or 'imported'}"
    if not folder.is_dir():
        _download(found, tracking_uri, folder)
    path = _model_file(found, role, folder)
    expected = found.tags.get("sha256")
    if expected and file_sha256(path) != expected:
        shutil.rmtree(folder)
        raise InputError(found.reference, "its file differs from what was registered", "register the model anew")
    return path


def _download(found: RegisteredVersion, tracking_uri: str, folder: Path) -> None:
    import mlflow.artifacts

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as near, reported(found.reference):
        try:
            got = mlflow.artifacts.download_artifacts(
                artifact_uri=found.source, dst_path=near, tracking_uri=tracking_uri
            )
        except OSError as error:
            reason = f"its artifacts cannot be fetched from {found.source} ({error})"
            raise InputError(found.reference, reason, "check that they still lie there") from error
        try:
            os.rename(got, folder)
        except OSError:
            if not folder.is_dir():  # otherwise a neighbour has fetched it meanwhile
                raise


def _model_file(found: RegisteredVersion, role: Role, folder: Path) -> Path:
    """The one file of the right kind; in Keras flavour folders that is ``data/model.keras``."""
    candidates = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES[role] and path.is_file())
    usual = [path for path in candidates if path.relative_to(folder).as_posix() == f"data/model{SUFFIXES[role][0]}"]
    chosen = usual or candidates
    if len(chosen) != 1:
        kinds = " or ".join(SUFFIXES[role])
        reason = f"holds {len(candidates)} files that end in {kinds}, not one"
        raise InputError(found.reference, reason, "register one file with `cmseg models import`")
    return chosen[0]


def _ensure_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _check_suffix(path: Path, role: Role) -> None:
    if path.suffix not in SUFFIXES[role]:
        kinds = " or ".join(SUFFIXES[role])
        raise InputError(path, f"is not a model for {role}", f"give a file that ends in {kinds}")
