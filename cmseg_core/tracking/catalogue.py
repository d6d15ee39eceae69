"""What the registry holds: versions, their tags and aliases, without their files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cmseg_core.errors import InputError
from cmseg_core.schema import Frozen
from cmseg_core.tracking.connection import connect, reported

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_REFERENCE = re.compile(
    r"models:/(?P<name>[A-Za-z0-9][A-Za-z0-9 ._-]*)(?:/(?P<version>[1-9][0-9]*)|@(?P<alias>[A-Za-z0-9_-]+))"
)


class RegisteredVersion(Frozen):
    """One version in the registry.

    Attributes
    ----------
    name, version : str
    aliases : tuple of str
        Such as ``champion``.
    tags : dict of str to str
        With ``role`` and ``sha256``.
    run_id : str
        Run that made it.
    source : str
        Where its artifacts lie.
    created : int
        Milliseconds since 1970.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str
    source: str
    created: int

    @property
    def reference(self) -> str:
        """``models:/name/version``."""
        return f"models:/{self.name}/{self.version}"


def describe(reference: str, tracking_uri: str) -> RegisteredVersion:
    """Look up ``models:/name/version`` or ``models:/name@alias`` without fetching it; raises as `resolve_model`."""
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise InputError(reference, "is not a reference to a model", "use models:/name/version or models:/name@alias")
    client = connect(tracking_uri)
    name, version, alias = match["name"], match["version"], match["alias"]
    with reported(reference):
        if alias is not None:
            version = client.get_model_version_by_alias(name, alias).version
        # Looked up by number in any case: only then are the aliases filled in.
        return _version(client.get_model_version(name, str(version)))


def find_alias(name: str, alias: str, tracking_uri: str) -> RegisteredVersion | None:
    """The version that bears an alias; None where there is no such model, or none of its versions bears it."""
    from mlflow.exceptions import MlflowException

    client = connect(tracking_uri)
    with reported(name):
        try:
            version = client.get_registered_model(name).aliases.get(alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if version is None else _version(client.get_model_version(name, str(version)))


def list_versions(tracking_uri: str) -> list[RegisteredVersion]:
    """Every registered version, by name and number."""
    client = connect(tracking_uri)
    with reported(tracking_uri):
        versions = [_version(client.get_model_version(v.name, str(v.version))) for v in search(client, "")]
    return sorted(versions, key=lambda v: (v.name, int(v.version)))


def set_alias(name: str, alias: str, version: str, tracking_uri: str) -> None:
    """Let ``models:/name@alias`` mean `version` from now on."""
    client = connect(tracking_uri)
    with reported(f"models:/{name}/{version}"):
        client.get_model_version(name, version)
        client.set_registered_model_alias(name, alias, version)


def check_name(name: str) -> None:
    """Raise `InputError` where no reference could point to a model of this name."""
    if not _REFERENCE.fullmatch(f"models:/{name}/1"):
        raise InputError(repr(name), "is not a name for a model", "use letters, digits, blanks, dots, _ and -")


def _version(version: ModelVersion) -> RegisteredVersion:
    return RegisteredVersion(
        name=version.name,
        version=str(version.version),
        aliases=tuple(sorted(version.aliases)),
        tags=dict(version.tags),
        run_id=version.run_id or "",
        source=version.source or "",
        created=version.creation_timestamp,
    )


def search(client: MlflowClient, query: str) -> list[ModelVersion]:
    """Every version that MLflow's filter `query` lets through, however many pages there are."""
    found, token = [], None
    while True:
        page = client.search_model_versions(query, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found
