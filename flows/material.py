"""What a training learns from: a data set of the store, or a folder of labelled acquisitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cmseg_core.errors import InputError
from cmseg_core.schema import PipelineConfig, Taxonomy
from cmseg_core.storage.datasets import Dataset, read_arrays, read_dataset, version_key
from cmseg_core.storage.store import Store
from flows.labelled import LabelledAcquisition, content_digest, find_labelled, read_labelled

if TYPE_CHECKING:  # the numeric libraries read the environment, which is prepared once the material is known
    from cmseg_core.foreground.training import LabelledField
    from cmseg_core.organelles.dataset import LabelledCell

EVERY = 5
"""Of so many acquisitions (or of so many cells, where there are fewer acquisitions) one is kept for validation."""
NO_VALIDATION = "none"
Report = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Material:
    """Where labelled cells come from; nothing is read before it is asked for.

    Attributes
    ----------
    place : Dataset or tuple of LabelledAcquisition
    taxonomy : Taxonomy
    name : str
        For people.
    facts : dict of str to str
        What identifies it: ``dataset`` and ``dataset_digest``, a hash of all its content. Goes into the record of a
        training.
    source : str
        Path or ``s3://`` address.
    """

    place: Dataset | tuple[LabelledAcquisition, ...]
    taxonomy: Taxonomy
    name: str
    facts: dict[str, str]
    source: str = ""

    @property
    def profile(self) -> dict[str, Any]:
        """Classes and samples, for the record of a training."""
        samples = self.place.samples if isinstance(self.place, Dataset) else self.place
        return {"classes": self.taxonomy.names, "samples": [sample.name for sample in samples]}

    @property
    def fields(self) -> bool:
        """All that is learnt from are whole fields, not cells."""
        return isinstance(self.place, Dataset) and all(sample.kind == "field" for sample in self.place.samples)


def find_material(reference: str, store: Callable[[], Store], pipeline: PipelineConfig) -> Material:
    """Find a folder of labelled acquisitions, or else a data set of the store.

    Parameters
    ----------
    reference : str
        Path of a folder, or the name of a data set, with ``@version`` for one that is not the latest.
    store : callable
        Opens the store.
    pipeline : PipelineConfig

    Raises
    ------
    InputError
        Where there is neither, or nothing in it.
    """
    folder = Path(reference)
    if folder.exists() or len(folder.parts) != 1:
        found = tuple(find_labelled(folder))
        facts = {"dataset": str(folder.absolute()), "dataset_digest": content_digest(found)}
        return Material(found, pipeline.taxonomy, folder.absolute().name, facts, str(folder.absolute()))
    opened = store()
    dataset = read_dataset(opened, reference)
    if not dataset.samples:
        raise InputError(dataset.reference, "holds no sample", "add labelled cells with `cmseg dataset add`")
    facts = {"dataset": dataset.reference, "dataset_digest": dataset.digest}
    return Material(dataset, dataset.taxonomy, dataset.name, facts, opened.uri_of(version_key(dataset)))


def find_validation(reference: str | None, store: Callable[[], Store], pipeline: PipelineConfig) -> Material | None:
    """What a training is validated with: as :func:`find_material`; None for a part of what it learns from.

    The word ``none`` gives material without a cell, so that everything is trained on.
    """
    if reference is None:
        return None
    if reference == NO_VALIDATION:
        return Material((), pipeline.taxonomy, NO_VALIDATION, {})
    return find_material(reference, store, pipeline)


def read_cells(
    material: Material,
    validation: Material | None,
    store: Callable[[], Store],
    pipeline: PipelineConfig,
    report: Report,
) -> tuple[list[LabelledCell], list[LabelledCell]]:
    """Cells to train on, and cells to validate with.

    Without material for validation every fifth acquisition is kept, or every fifth cell where there are fewer than five
    acquisitions; fewer than five cells are all trained on.
    """
    if validation is not None:
        return read_all(material, store, pipeline, report), read_all(validation, store, pipeline, report)
    if isinstance(material.place, tuple) and len(material.place) >= EVERY:
        fields, kept = part(material.place)
        return _cut(fields, pipeline, report), _cut(kept, pipeline, report)
    return part(read_all(material, store, pipeline, report))


def read_all(
    material: Material, store: Callable[[], Store], pipeline: PipelineConfig, report: Report
) -> list[LabelledCell]:
    """Every labelled cell of the material."""
    if isinstance(material.place, tuple):
        return _cut(material.place, pipeline, report)
    return list(_samples(material.place, store(), median=pipeline.preprocess.median_size == 3))


def read_case(
    material: Material, case: int, store: Callable[[], Store], pipeline: PipelineConfig, report: Report
) -> tuple[list[LabelledCell], list[LabelledCell]]:
    """Cells that a case of the cross-validation trains on, and those that it is scored with.

    Raises
    ------
    InputError
        Where there is no such case, or there are too few cells.
    """
    from cmseg_core.organelles.folds import CASES, cross_validation

    if not 1 <= case <= CASES:
        raise InputError("--case", f"{case} is not a case", f"give 1 to {CASES}")
    check_cases(material)
    cells = read_all(material, store, pipeline, report)
    fold = cross_validation([cell.stage for cell in cells])[case - 1]
    return [cells[i] for i in fold.training], [cells[i] for i in fold.validation]


def check_cases(material: Material) -> None:
    """Raise `InputError` where the samples of a data set are too few for six cases; nothing is read for it."""
    from cmseg_core.organelles.folds import cross_validation

    if isinstance(material.place, Dataset):
        cross_validation([sample.stage for sample in material.place.samples])


def read_fields(material: Material, pipeline: PipelineConfig, report: Report) -> list[LabelledField]:
    """Fields with the ids of their cells, on the working grid.

    Raises
    ------
    InputError
        Where the material is a data set of organelles, which knows no ids of cells.
    """
    fields = []
    for one in check_fields(material):
        report(f"reading {one.name}")
        fields.append(read_field(one, pipeline))
    return fields


def read_field(one: LabelledAcquisition, pipeline: PipelineConfig) -> LabelledField:
    """A field with the ids of its cells, on the working grid."""
    from cmseg_core.foreground.training import LabelledField
    from cmseg_core.preprocess.resample import resize, working_shape

    image, cells, _ = read_labelled(one, pipeline.preprocess)
    pixel_nm = pipeline.foreground.cell_diameter_nm / pipeline.foreground.cell_diameter_px
    shape = working_shape(image.shape, one.voxel_size, pixel_nm)
    interpolation = pipeline.preprocess.interpolation
    return LabelledField(resize(image, shape, interpolation), resize(cells, shape, "nearest"), one.name)


def read_parted_fields(
    material: Material, validation: Material | None, pipeline: PipelineConfig, report: Report
) -> tuple[list[LabelledField], list[LabelledField]]:
    """Fields to train on, and to validate with, as :func:`read_fields` gives them."""
    fields = read_fields(material, pipeline, report)
    return part(fields) if validation is None else (fields, read_fields(validation, pipeline, report))


def check_fields(material: Material) -> Sequence[LabelledAcquisition]:
    """The acquisitions of the material; raises `InputError` where it is a data set of organelles."""
    if isinstance(material.place, Dataset):
        reason = "is a data set of organelles, which does not tell cells apart"
        raise InputError(material.place.reference, reason, "give a folder of acquisitions with truth")
    return material.place


def part(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """Four of every five items, and the fifth."""
    return [item for n, item in enumerate(items) if (n + 1) % EVERY], list(items[EVERY - 1 :: EVERY])


def _samples(dataset: Dataset, store: Store, *, median: bool) -> Iterator[LabelledCell]:
    from cmseg_core.organelles.dataset import LabelledCell
    from cmseg_core.preprocess.median import median_3x3x3

    for sample in dataset.samples:
        arrays = read_arrays(store, dataset.name, sample)
        # A field keeps its scale: what is but a few voxels wide there suffers from the filter.
        filtered = median and not sample.denoised and sample.kind != "field"
        yield LabelledCell(
            image=median_3x3x3(arrays["image"]) if filtered else arrays["image"],
            labels=arrays["labels"],
            voxel_size=sample.voxel_size,
            stage=sample.stage,
            name=sample.name,
            others=arrays.get("others"),
            field=sample.kind == "field",
        )


def _cut(fields: Sequence[LabelledAcquisition], pipeline: PipelineConfig, report: Report) -> list[LabelledCell]:
    from cmseg_core.organelles.cutting import cut_cells
    from cmseg_core.organelles.labels import count_labels

    cells = []
    for field in fields:
        image, ids, organelles = read_labelled(field, pipeline.preprocess)
        count_labels(organelles, pipeline.taxonomy, field.organelles)
        report(f"cutting cells out of {field.name}")
        margin = pipeline.organelles.margin_nm
        cells += cut_cells(image, ids, organelles, field.voxel_size, field.stages, margin, field.name)
    if fields and not cells:
        raise InputError(fields[0].stack.parent, "holds no cell to learn from", "give a field with whole cells")
    return cells
