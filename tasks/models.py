"""Models at hand in this process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cmseg_core.errors import InputError
from cmseg_core.morphology.stage_classifier import StageClassifier, load_classifier
from cmseg_core.schema import PipelineConfig, Taxonomy
from cmseg_core.tracking.registry import ResolvedModel, Role, resolve_model
from tasks.request import STAGE_RULE, AcquisitionRequest

if TYPE_CHECKING:
    from cmseg_core.organelles.model import OrganelleModel


def resolve_models(request: AcquisitionRequest) -> dict[Role, ResolvedModel]:
    """The models that a request needs, as files; nothing is loaded.

    Raises
    ------
    InputError
        Where a reference leads nowhere.
    """
    wanted: dict[Role, str] = {"unet": request.unet}
    if request.config.foreground.method == "sam":
        wanted["sam"] = request.sam
    if request.stage_model != STAGE_RULE:
        wanted["stage"] = request.stage_model
    cache = request.workspace / "models"
    return {role: resolve_model(name, role, request.tracking_uri, cache) for role, name in wanted.items()}


def organelle_model(resolved: ResolvedModel) -> OrganelleModel:
    """The network, loaded once a process however many cells it labels."""
    return _load(resolved.path, resolved.sha256)


def stage_classifier(resolved: ResolvedModel) -> StageClassifier:
    """The classifier of the cell-cycle stage, read once a process."""
    return _load_classifier(resolved.path, resolved.sha256)


def suited_classifier(resolved: ResolvedModel | None, taxonomy: Taxonomy) -> ResolvedModel | None:
    """The classifier's model once it has proved to be one; None where there is none or this taxonomy is beyond it.

    Raises
    ------
    InputError
        Where the file holds none.
    """
    return resolved if resolved is not None and stage_classifier(resolved).judges(taxonomy) else None


def agreed_taxonomy(config: PipelineConfig, resolved: ResolvedModel) -> Taxonomy:
    """The classes of a run: those of the model, in the colours of the settings where these name the same classes.

    Raises
    ------
    InputError
        Where the settings state other classes than the model was trained for.
    """
    trained = organelle_model(resolved).taxonomy
    if config.taxonomy.names == trained.names:
        return config.taxonomy
    if "taxonomy" in config.model_fields_set:
        reason = f"was trained for {', '.join(trained.names)}, the settings name {', '.join(config.taxonomy.names)}"
        raise InputError(resolved.reference, reason, "leave the taxonomy out of the settings, or name another model")
    return trained


@lru_cache(maxsize=1)
def _load(path: Path, _sha256: str) -> OrganelleModel:
    # TensorFlow takes seconds to import: only a process that labels cells pays for it.
    from cmseg_core.organelles.model import load_model

    return load_model(path)


@lru_cache(maxsize=1)
def _load_classifier(path: Path, _sha256: str) -> StageClassifier:
    return load_classifier(path)
