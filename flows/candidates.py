"""How models of each role are compared: on what, and by which counts the gate judges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cmseg_core.errors import InputError
from cmseg_core.evaluation.gate import Scored, Unit
from cmseg_core.schema import STAGES, OrganelleClass, PipelineConfig, Stage, Taxonomy
from cmseg_core.storage.store import Store
from cmseg_core.tracking.registry import Role, resolve_model
from flows.cell_cycle import segmented
from flows.console import Console
from flows.evaluate import check_classes, score_cells
from flows.field_cells import find_field_cells
from flows.material import Material, Report, check_fields, read_all, read_fields

if TYPE_CHECKING:
    from cmseg_core.foreground.sam import SamModel
    from cmseg_core.foreground.training import LabelledField
    from cmseg_core.morphology.stage_classifier import StageClassifier
    from cmseg_core.organelles.dataset import LabelledCell
    from cmseg_core.organelles.model import OrganelleModel


@dataclass(frozen=True)
class Ground:
    """What a contest is held on, and where models come from.

    Attributes
    ----------
    material : Material
    store : callable
        Opens the store.
    pipeline : PipelineConfig
    uri : str
        Of MLflow.
    cache : path
        Folder of fetched models.
    unet : str
        The U-Net whose labels a classifier of the stage is given.
    """

    material: Material
    store: Callable[[], Store]
    pipeline: PipelineConfig
    uri: str
    cache: Path
    unet: str


class Candidate(Protocol):
    """A model at hand to be scored: what it is judged by, and the names of what it learnt from."""

    @property
    def taxonomy(self) -> Taxonomy: ...

    @property
    def learnt(self) -> frozenset[str]: ...

    def check(self, reference: str, material: Material) -> None:
        """Raise `InputError` where the model cannot be scored on the material."""
        ...

    def score(self, samples: Sequence[Any], pipeline: PipelineConfig) -> Sequence[Scored]: ...


@dataclass(frozen=True)
class Discipline:
    """How models of a role meet.

    Attributes
    ----------
    unit : {"cell", "field"}
        Of what there are samples.
    load : callable
        Reads a model's file.
    read : callable
        The samples that both models are given.
    settings : set of str
        Parts of the pipeline's settings that the scores depend on.
    """

    unit: Unit
    load: Callable[[Path], Candidate]
    read: Callable[[Ground, Report], Sequence[Any]]
    settings: set[str]


@dataclass(frozen=True, eq=False)
class Count:
    """What the gate needs to know of a sample: see :class:`cmseg_core.evaluation.gate.Scored`."""

    name: str
    table: NDArray[np.int64]
    stage: Stage | None = None


@dataclass(frozen=True, eq=False)
class OrganelleCandidate:
    """A U-Net: it labels every cell anew, and voxels are counted by true and found class."""

    model: OrganelleModel

    @property
    def taxonomy(self) -> Taxonomy:
        return self.model.taxonomy

    @property
    def learnt(self) -> frozenset[str]:
        return frozenset(self.model.metadata.get("cells", ()))

    def check(self, reference: str, material: Material) -> None:
        check_classes(reference, self.taxonomy, material.taxonomy)

    def score(self, samples: Sequence[LabelledCell], pipeline: PipelineConfig) -> Sequence[Scored]:
        return score_cells(samples, self.model, pipeline, Console(as_json=False))


@dataclass(frozen=True, eq=False)
class SamCandidate:
    """A Segment Anything model: it finds the cells of every field anew, and they and their voxels are counted."""

    model: SamModel

    @property
    def taxonomy(self) -> Taxonomy:
        from cmseg_core.evaluation.instances import JUDGED

        return _named(JUDGED)

    @property
    def learnt(self) -> frozenset[str]:
        return frozenset(self.model.facts.get("names", ()))

    def check(self, reference: str, material: Material) -> None:
        check_fields(material)

    def score(self, samples: Sequence[LabelledField], pipeline: PipelineConfig) -> Sequence[Scored]:
        from cmseg_core.evaluation.instances import table_of_cells

        found = (find_field_cells(field, pipeline, self.model) for field in samples)
        return [Count(field.name, table_of_cells(field.cells, one)) for field, one in zip(samples, found, strict=True)]


@dataclass(frozen=True, eq=False)
class StagedFeatures:
    """A cell of known stage, and what a classifier is given of it."""

    name: str
    stage: Stage
    features: dict[str, float]


@dataclass(frozen=True, eq=False)
class StageCandidate:
    """A classifier of the stage: cells are counted by true and found stage."""

    model: StageClassifier

    @property
    def taxonomy(self) -> Taxonomy:
        return _named(("none", *(f"stage {stage}" for stage in STAGES)))

    @property
    def learnt(self) -> frozenset[str]:
        return frozenset(self.model.metadata.get("names", ()))

    def check(self, reference: str, material: Material) -> None:
        from cmseg_core.morphology.stage_training import check_organelles

        check_organelles(material.taxonomy, material.name)

    def score(self, samples: Sequence[StagedFeatures], pipeline: PipelineConfig) -> Sequence[Scored]:
        scores = []
        for cell in samples:
            table = np.zeros((len(STAGES) + 1,) * 2, np.int64)
            table[cell.stage, self.model.classify(cell.features)[0] or 0] = 1
            scores.append(Count(cell.name, table))
        return scores


def _named(names: Sequence[str]) -> Taxonomy:
    return Taxonomy(classes=tuple(OrganelleClass(id=number, name=name) for number, name in enumerate(names)))


def _load_unet(path: Path) -> Candidate:
    from cmseg_core.organelles.model import load_model

    return OrganelleCandidate(load_model(path))


def _load_sam(path: Path) -> Candidate:
    from cmseg_core.foreground.sam import load_sam

    return SamCandidate(load_sam(path))


def _load_classifier(path: Path) -> Candidate:
    from cmseg_core.morphology.stage_classifier import load_classifier

    return StageCandidate(load_classifier(path))


def _read_cells(ground: Ground, report: Report) -> Sequence[LabelledCell]:
    return read_all(ground.material, ground.store, ground.pipeline, report)


def _read_fields(ground: Ground, report: Report) -> Sequence[LabelledField]:
    return read_fields(ground.material, ground.pipeline, report)


def _read_staged(ground: Ground, report: Report) -> Sequence[StagedFeatures]:
    """Cells of known stage with the labels that the U-Net in use gives them, as a classifier meets them at night."""
    from cmseg_core.morphology.stage_features import stage_features

    material = ground.material
    cells = read_all(material, ground.store, ground.pipeline, report)
    unet = resolve_model(ground.unet, "unet", ground.uri, ground.cache)
    found = segmented(cells, unet, material, ground.pipeline, report)
    if not found:
        raise InputError(material.name, "states no stage of any cell", "add cells with `cmseg dataset add --stage N`")
    return [
        StagedFeatures(cell.name, cell.stage, stage_features(cell.labels, material.taxonomy, cell.voxel_size))
        for cell in found
    ]


DISCIPLINES: dict[Role, Discipline] = {
    "unet": Discipline("cell", _load_unet, _read_cells, {"preprocess", "organelles"}),
    "sam": Discipline("field", _load_sam, _read_fields, {"preprocess", "foreground", "instances"}),
    "stage": Discipline("cell", _load_classifier, _read_staged, {"preprocess", "organelles"}),
}
"""How the models of each role meet."""
