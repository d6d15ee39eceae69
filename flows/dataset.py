"""Data sets of labelled cells from the command line: create, add, show."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from cmseg_core.acquisition.reader import read_labels
from cmseg_core.errors import InputError
from cmseg_core.evaluation.tables import format_table
from cmseg_core.organelles.cutting import cut_cells
from cmseg_core.organelles.dataset import LabelledCell
from cmseg_core.organelles.labels import count_labels, is_one_cell
from cmseg_core.preprocess.intensity import find_window, to_uint8
from cmseg_core.report.classes import LabelledVolume, draw_classes
from cmseg_core.schema import C_MEROLAE, PipelineConfig, Stage, Taxonomy, VoxelSize, Workspace
from cmseg_core.storage.datasets import (
    Dataset,
    Sample,
    add_samples,
    create_dataset,
    read_arrays,
    read_dataset,
    write_arrays,
)
from cmseg_core.storage.manifest import file_sha256
from cmseg_core.storage.manifest import read as read_manifest
from cmseg_core.storage.omezarr import open_image
from cmseg_core.storage.store import Store
from flows.console import DONE, Console
from flows.places import store_address
from tasks.source import is_zarr, open_stack
from tasks.truth import stages_beside

Kind = Literal["cell", "field", "sections"]


@dataclass(frozen=True)
class Labelled:
    """What ``cmseg dataset add`` is given.

    Attributes
    ----------
    image, labels : path
        Stacks of one shape: TIFF, folder of images, or OME-Zarr.
    cells : path, optional
        Ids of the cells of a field: every cell then becomes a sample.
    voxel_size : VoxelSize, optional
    stage : int, optional
        Of a single cell.
    kind : {"cell", "field", "sections"}, optional
        By default told from the labels, between cell and field. Of sections every labelled one becomes a sample.
    name : str, optional
    """

    image: Path
    labels: Path
    cells: Path | None = None
    voxel_size: VoxelSize | None = None
    stage: Stage | None = None
    kind: Kind | None = None
    name: str | None = None


def create_local(console: Console, name: str, taxonomy: Path | None) -> int:
    """Create a data set as ``cmseg dataset create`` is asked to."""
    classes = C_MEROLAE if taxonomy is None else Taxonomy.from_file(taxonomy)
    dataset = create_dataset(store_address(Workspace()).open(), name, classes)
    listed = ", ".join(f"{c.id} {c.name}" for c in classes.classes)
    console.result(_document(dataset), f"{dataset.reference}: an empty data set with the classes {listed}")
    return DONE


def add_local(console: Console, name: str, given: Labelled) -> int:
    """Add labelled cells as ``cmseg dataset add`` is asked to."""
    store = store_address(Workspace()).open()
    before = read_dataset(store, name.partition("@")[0])
    if "@" in name:
        raise InputError(name, "names a version, which never changes", f"add to {before.name}")
    cells = _read(given, before)
    samples = [_stored(store, before, cell, given, provenance, denoised) for cell, provenance, denoised in cells]
    _refuse_other_images(before, samples, given)
    after = add_samples(store, name, samples)
    new = "nothing new" if after.version == before.version else f"{len(samples)} {_plural(samples)} added"
    document = {**_document(after), "added": [s.name for s in samples]}
    console.result(document, "\n".join([f"{after.reference}: {new}, {len(after.samples)} in all", *_warnings(after)]))
    return DONE


def show_local(console: Console, reference: str, picture: Path | None) -> int:
    """Show a data set as ``cmseg dataset show`` is asked to."""
    workspace = Workspace()
    store = store_address(workspace).open()
    dataset = read_dataset(store, reference)
    lines = [f"{dataset.reference}, {dataset.digest[:12]}: {len(dataset.samples)} {_plural(dataset.samples)}", ""]
    lines.append(format_table(("class", "samples", "voxels", "share"), _class_rows(dataset)))
    shown: dict[str, str] = {}
    if dataset.samples:
        lines += ["", format_table(("sample", "kind", "stage", "shape", "voxel nm"), _sample_rows(dataset))]
        path = picture or workspace.workspace / "datasets" / f"{dataset.name}-{dataset.version}.png"
        _draw(store, dataset, path)
        shown["picture"] = str(path.absolute())
        lines += ["", f"picture: {path}"]
    lines += _warnings(dataset)
    console.result({**_document(dataset), **shown}, "\n".join(lines))
    return DONE


# -------------------------------------------------------------------------------------------- reading


def _read(given: Labelled, dataset: Dataset) -> list[tuple[LabelledCell, dict[str, Any], bool]]:
    """The cells or the field that are given, with their provenance and whether they are denoised."""
    source = open_stack(str(given.image), given.voxel_size)
    result = _result_of(given.image)
    labels = _labels(given.labels, source.shape, None if result is None else result.crop)
    count_labels(labels, dataset.taxonomy, given.labels)
    raw = source.read(0, source.shape[0])
    preprocess = PipelineConfig().preprocess
    keep = raw.dtype == np.uint8 and not preprocess.stretch_8bit
    window = None if keep else find_window(source, *preprocess.window_percentiles)
    image, labels = to_uint8(raw, window), labels.astype(np.uint8)
    origin: dict[str, Any] = {
        "image": {"path": str(given.image.absolute()), "sha256": source.sha256(), "window": window},
        "labels": {"path": str(given.labels.absolute()), "sha256": _sha256(given.labels)},
    }
    name = given.name or f"{given.image.absolute().parent.name}/{given.image.stem}"
    if result is not None:
        name, origin["result"] = given.name or result.name, result.facts
    if given.cells is not None:
        if given.kind in ("field", "sections") or given.stage is not None:
            raise InputError("--cells", "makes a sample of every cell", "leave --kind and --stage out")
        ids = _labels(given.cells, source.shape)
        if result is None:
            name = given.name or given.image.absolute().parent.name
        cut = cut_cells(image, ids, labels, source.voxel_size, stages_beside(given.image), name=name)
        if not cut:
            raise InputError(given.cells, "holds no cell to learn from", "give a field with whole cells")
        cells = {"path": str(given.cells.absolute()), "sha256": _sha256(given.cells)}
        return [(cell, {**origin, "cells": cells}, False) for cell in cut if cell.labels.any()]
    if given.kind == "sections":
        if given.stage is not None:
            raise InputError("--stage", "is that of a single cell", "leave it out with --kind sections")
        return [
            (_section(image, labels, number, source.voxel_size, name), {**origin, "section": number}, False)
            for number in np.flatnonzero(labels.any(axis=(1, 2))).tolist()
        ]
    crop = None if result is None else result.crop
    field = given.kind == "field" if given.kind else crop is None and not is_one_cell(labels)
    others = None if crop is None else crop.others
    if others is not None and others.shape != image.shape:
        raise InputError(given.image, "is not the size its result says", "give the image.tif of the cell unchanged")
    cell = LabelledCell(image, labels, source.voxel_size, given.stage, name, others, field)
    return [(cell, origin, result is not None and result.denoised)]


def _section(image: np.ndarray, labels: np.ndarray, number: int, voxel_size: VoxelSize, name: str) -> LabelledCell:
    return LabelledCell(image[[number]], labels[[number]], voxel_size, name=f"{name}/{number:05}", field=True)


@dataclass(frozen=True, eq=False)
class _Crop:
    """Where a cell of a result lies in its volume, and the ids of all cells in this crop."""

    volume: tuple[int, ...]
    box: tuple[slice, ...]
    cell: int
    ids: np.ndarray
    voxel_size: VoxelSize

    @property
    def others(self) -> np.ndarray:
        """Where other cells lie."""
        return (self.ids > 0) & (self.ids != self.cell)

    def own(self, labels: np.ndarray) -> np.ndarray:
        """Labels of the crop without those of other cells; a voxel of no cell goes with the nearest one."""
        sampling = self.voxel_size.zyx
        places = distance_transform_edt(self.ids == 0, sampling, return_distances=False, return_indices=True)
        return np.where(self.ids[tuple(np.asarray(places))] == self.cell, labels, 0)


@dataclass(frozen=True, eq=False)
class _Result:
    """The result of ``cmseg run`` that an image comes from; the crop is that of a single cell."""

    name: str
    facts: dict[str, Any]
    crop: _Crop | None
    denoised: bool


def _result_of(image: Path) -> _Result | None:
    """The result whose ``cells/ID/image.tif`` or ``volume.ome.zarr`` an image is, or None for any other image."""
    above = image.absolute().parents
    cell = None
    if image.name == "volume.ome.zarr":
        out = above[0]
    elif image.name == "image.tif" and len(above) >= 3 and above[1].name == "cells" and above[0].name.isdecimal():
        out, cell = above[2], above[0].name
    else:
        return None
    if not (out / "manifest.json").is_file():
        return None
    manifest = read_manifest(out)
    facts = {
        "acquisition": manifest.acquisition.model_dump(mode="json", include={"name", "sha256"}),
        "cell": cell,
        "manifest": file_sha256(out / "manifest.json"),
        "models": manifest.models,
    }
    if cell is None:
        return _Result(manifest.acquisition.name, facts, None, denoised=False)
    preprocess = manifest.config.get("preprocess") or {}
    margin = (manifest.config.get("organelles") or {}).get("margin_nm", PipelineConfig().organelles.margin_nm)
    crop = _crop(out, int(cell), float(margin))
    return _Result(f"{manifest.acquisition.name}/{cell}", facts, crop, preprocess.get("median_size") == 3)


def _crop(out: Path, cell: int, margin_nm: float) -> _Crop | None:
    """The crop of one of the cells of a result."""
    ids, voxel_size = open_image(out / "volume.ome.zarr" / "labels" / "cells")
    with (out / "cells.csv").open(encoding="utf-8", newline="") as table, suppress(StopIteration):
        row = next(row for row in csv.DictReader(table) if row["cell_id"] == str(cell))
        box = []
        for axis, length, edge in zip("zyx", ids.shape, voxel_size.zyx, strict=True):
            margin = int(np.ceil(margin_nm / edge))
            start, stop = int(row[f"bbox_{axis}0"]), int(row[f"bbox_{axis}1"])
            box.append(slice(max(0, start - margin), min(length, stop + margin)))
        return _Crop(tuple(ids.shape), tuple(box), cell, np.asarray(ids[tuple(box)]), voxel_size)
    return None


def _labels(path: Path, shape: tuple[int, int, int], crop: _Crop | None = None) -> np.ndarray:
    """Labels on the grid of an image; of a cell's image also those of the whole volume, of which its crop is taken."""
    if not is_zarr(path):
        return read_labels(path, shape)
    # Labels lie on the grid of the image: that they state a voxel size of their own is not asked for.
    array, _ = open_image(path, voxel_size=VoxelSize(z=1, y=1, x=1))
    if array.dtype.kind not in "bui":
        raise InputError(path, f"holds {array.dtype} numbers", "give labels as whole numbers")
    if crop is not None and tuple(array.shape) == crop.volume:
        labels = crop.own(np.asarray(array[crop.box]))
    elif tuple(array.shape) != tuple(shape):
        mend = "give labels on the same grid as the image"
        raise InputError(path, f"has shape {tuple(array.shape)}, the image {tuple(shape)}", mend)
    else:
        labels = np.asarray(array[:])
    if labels.min() < 0:
        raise InputError(path, "holds negative labels", "use 0 for what lies outside and positive ids")
    return labels.astype(np.uint32) if labels.dtype.kind == "i" else labels


def _sha256(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path)} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------- writing


def _stored(
    store: Store, dataset: Dataset, cell: LabelledCell, given: Labelled, provenance: dict[str, Any], denoised: bool
) -> Sample:
    arrays: dict[str, np.ndarray] = {"image": cell.image, "labels": cell.labels}
    if cell.others is not None and cell.others.any():
        arrays["others"] = cell.others
    depth, rows, columns = cell.image.shape
    return Sample(
        name=cell.name,
        content=write_arrays(store, dataset.name, arrays, cell.voxel_size),
        kind="field" if cell.field else "cell",
        voxel_size=cell.voxel_size,
        shape=(depth, rows, columns),
        voxels=count_labels(cell.labels, dataset.taxonomy, given.labels),
        stage=cell.stage,
        denoised=denoised,
        provenance=provenance,
    )


def _refuse_other_images(dataset: Dataset, samples: list[Sample], given: Labelled) -> None:
    """A name may come back with other labels, which is a correction, but not with another image."""
    present = {sample.name: sample for sample in dataset.samples}
    for sample in samples:
        former = present.get(sample.name)
        if former is not None and former.provenance["image"]["sha256"] != sample.provenance["image"]["sha256"]:
            reason = f"would replace the sample {sample.name}, which has another image"
            raise InputError(given.image, reason, "give it a name of its own with --name")


# -------------------------------------------------------------------------------------------- showing


def _document(dataset: Dataset) -> dict[str, Any]:
    return {"reference": dataset.reference, "digest": dataset.digest, **dataset.model_dump(mode="json")}


def _plural(samples: Any) -> str:
    return "sample" if len(samples) == 1 else "samples"


def _class_rows(dataset: Dataset) -> list[tuple[Any, ...]]:
    total = sum(sum(sample.voxels.values()) for sample in dataset.samples) or 1
    rows = []
    for name in dataset.taxonomy.names:
        counts = [sample.voxels[name] for sample in dataset.samples if name in sample.voxels]
        rows.append((name, str(len(counts)), f"{sum(counts):,}", f"{sum(counts) / total:.2%}"))
    return rows


def _sample_rows(dataset: Dataset) -> list[tuple[Any, ...]]:
    return [
        (
            sample.name,
            sample.kind,
            "" if sample.stage is None else str(sample.stage),
            " x ".join(map(str, sample.shape)),
            " x ".join(f"{edge:g}" for edge in sample.voxel_size.zyx),
        )
        for sample in dataset.samples
    ]


def _warnings(dataset: Dataset) -> list[str]:
    """What a training on this data set would suffer from."""
    if not dataset.samples:
        return ["", "It holds no sample: add some with `cmseg dataset add`."]
    seen = {name for sample in dataset.samples for name in sample.voxels}
    absent = [c.name for c in dataset.taxonomy.foreground if c.name not in seen]
    return ["", f"No sample shows {', '.join(absent)}: nothing can be learnt about it."] if absent else []


def _draw(store: Store, dataset: Dataset, path: Path) -> None:
    def volumes() -> Iterator[LabelledVolume]:
        for sample in dataset.samples:
            arrays = read_arrays(store, dataset.name, sample)
            yield LabelledVolume(sample.name, arrays["image"], arrays["labels"], sample.voxel_size)

    done, data = cv2.imencode(".png", draw_classes(volumes(), dataset.taxonomy)[..., ::-1])
    if not done:
        raise ValueError("the picture cannot be encoded")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise InputError(path, f"cannot be written ({error.strerror})", "name another file with --picture") from error
