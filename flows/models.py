"""The models that are known here, and which of them is champion."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from cmseg_core.errors import InputError
from cmseg_core.schema import PipelineConfig, Workspace
from cmseg_core.tracking.catalogue import describe, list_versions
from cmseg_core.tracking.official import OFFICIAL, check_address, fetch_checkpoint
from cmseg_core.tracking.registry import (
    CHAMPION,
    FORMER,
    MODEL_NAMES,
    PACKAGED,
    SUFFIXES,
    Role,
    packaged_model,
    register_file,
    resolve_model,
)
from flows.console import DONE, QUARANTINED, Console
from flows.places import tracking_uri


def show_models(console: Console) -> int:
    """Print the packaged models and every registered version."""
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
        Where it is none, or the alias is not for imports.
    """
    if alias in {CHAMPION, FORMER}:
        mend = "leave it out, then compare the model with the champion: `cmseg models promote`"
        raise InputError("--alias", f"{alias} is given to models that passed the gate", mend)
    check_model(file, role)
    name = name or MODEL_NAMES[role]
    version = register_file(file, name, role, tracking_uri(Workspace()), alias=alias)
    reference = f"models:/{name}/{version}"
    console.result({"model": reference, "alias": alias}, reference)
    return DONE


def fetch_file(console: Console, name: str, url: str | None) -> int:
    """Fetch an official checkpoint of Segment Anything, once.

    Raises
    ------
    InputError
        Where it cannot be fetched.
    """
    if url is not None:
        check_address(url)
    with console.progress(f"fetching {name}", OFFICIAL[name].size) as advance:
        path = fetch_checkpoint(name, Workspace().workspace / "models", url=url, on_bytes=advance)
    document = {"model": name, "file": str(path), "sha256": OFFICIAL[name].sha256}
    console.result(document, f"{path}\nuse it with `cmseg run --sam {name}`")
    return DONE


def promote_model(console: Console, model: str, dataset: str, config: Path | None, approval: bool) -> int:
    """Let a challenger meet the champion as ``cmseg models promote`` is asked to, and print the decision.

    Returns
    -------
    int
        Exit status: 0 where it was promoted, 3 where it was refused or declined.
    """
    from flows.environment import prepare

    workspace, pipeline = Workspace(), PipelineConfig.from_file(config)
    prepare(workspace)
    from prefect.settings import PREFECT_API_URL

    from flows.audit import described
    from flows.promote import promote

    if approval and not PREFECT_API_URL.value():
        reason = "needs a Prefect server, in whose UI somebody answers"
        raise InputError("--approval", reason, "set PREFECT_API_URL, or leave it out")
    with console.pipeline(f"{model} against the champion"):
        audit = promote(model, dataset, approval, pipeline, workspace)
    console.result(audit.model_dump(mode="json"), described(audit))
    return DONE if audit.action == "promoted" else QUARANTINED


def roll_back(console: Console, name: str) -> int:
    """Let the former champion be champion again, once its file is at hand."""
    from cmseg_core.tracking.promotion import former_champion, rollback
    from flows.audit import described

    workspace = Workspace()
    uri = tracking_uri(workspace)
    former = former_champion(name, uri)
    resolve_model(former.reference, _role_of(former.tags.get("role")), uri, workspace.workspace / "models")
    audit = rollback(name, uri)
    console.result(audit.model_dump(mode="json"), described(audit))
    return DONE


def show_audit(console: Console, name: str | None) -> int:
    """Print every decision on champions."""
    from cmseg_core.tracking.promotion import read_audits
    from flows.audit import audit_table

    audits = read_audits(tracking_uri(Workspace()), name)
    console.result({"decisions": [audit.model_dump(mode="json") for audit in audits]}, audit_table(audits))
    return DONE


def export_file(console: Console, model: str, file: Path) -> int:
    """Write a model as a file of its own.

    Raises
    ------
    InputError
        Where there is no such model, or the file exists, cannot be written, or has a name for another kind of model.
    """
    from flows.training_job import check_out, copy_whole

    workspace = Workspace()
    uri = tracking_uri(workspace)
    registered = describe(model, uri).tags.get("role") if model.startswith("models:") else None
    role = _role_of(registered) if registered else _role_for(file)
    check_out(file, role)
    found = resolve_model(model, role, uri, workspace.workspace / "models")
    copy_whole(found.path, file)
    facts = {"file": str(file.absolute()), "model": found.reference, "version": found.version, "sha256": found.sha256}
    console.result(facts, f"{file}: {found.reference}, version {found.version}")
    return DONE


def _role_of(registered: str | None) -> Role:
    """The role that a version was registered with; a version that others registered is taken for a U-Net."""
    return cast(Role, registered or "unet")


def _role_for(file: Path) -> Role:
    """The role whose models have files of such a name."""
    for role, suffixes in SUFFIXES.items():
        if file.suffix in suffixes:
            return role
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise InputError(file, "is not a name for a model", f"let it end in one of {known}")


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
        from cmseg_core.foreground.sam import load_sam

        load_sam(file)
