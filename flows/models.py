"""The models that are known here."""

from __future__ import annotations

from pathlib import Path

from cmseg_core.schema import Workspace
from cmseg_core.tracking.catalogue import list_versions
from cmseg_core.tracking.registry import MODEL_NAMES, PACKAGED, Role, packaged_model, register_file
from flows.console import DONE, Console
from flows.places import tracking_uri


def show_models(console: Console) -> int:
    """Print the packaged models and every registered version."""
    from cmseg_core.errors import InputError
    from cmseg_core.evaluation.tables import format_table

    rows = []
    for role in PACKAGED:
        try:
            path = packaged_model(role)
        except InputError:
            continue
        rows.append({"reference": "packaged", "role": role, "aliases": [], "file": str(path), "sha256": None})
    for version in list_versions(tracking_uri(Workspace())):
        rows.append(
            {
                "reference": version.reference,
                "role": version.tags.get("role"),
                "aliases": list(version.aliases),
                "file": version.source,
                "sha256": version.tags.get("sha256"),
            }
        )
    table = [(r["reference"], r["role"], ", ".join(r["aliases"]) or None, r["file"]) for r in rows]
    console.result({"models": rows}, format_table(("model", "role", "aliases", "file"), table))
    return DONE


def import_file(console: Console, file: Path, role: Role, name: str | None, alias: str | None) -> int:
    """Register a file once it has proved to be a model.

    Raises
    ------
    InputError
        Where it is none.
    """
    check_model(file, role)
    name = name or MODEL_NAMES[role]
    version = register_file(file, name, role, tracking_uri(Workspace()), alias=alias)
    reference = f"models:/{name}/{version}"
    console.result({"model": reference, "alias": alias}, reference)
    return DONE


def check_model(file: Path, role: Role) -> None:
    """Raise `InputError` where a file is no model of this kind."""
    from flows.environment import prepare

    prepare(Workspace())
    if role == "unet":
        from cmseg_core.organelles.model import load_model

        load_model(file)
    elif role == "stage":
        from cmseg_core.morphology.stage_classifier import load_classifier

        load_classifier(file)
    else:
        from cmseg_core.foreground import load_sam

        load_sam(file)
