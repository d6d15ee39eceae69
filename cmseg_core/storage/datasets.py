"""Versioned sets of labelled cells in the store.

A sample (a labelled cell, or a labelled field) lies under the hash of its content and never changes. A version is one
small file that lists samples, written last and once: whoever reads a version reads the same data for ever.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import tifffile
from pydantic import Field, ValidationError

from cmseg_core.errors import InputError
from cmseg_core.schema import Frozen, Stage, Taxonomy, VoxelSize, first_problem
from cmseg_core.storage.stages import canonical_json
from cmseg_core.storage.store import Store

DATASETS = "datasets"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TRIES = 20
"""Others may write a version at the same time; of each round one gets through."""

Kind = Literal["cell", "field"]


class Sample(Frozen):
    """What a data set says about one labelled cell or field.

    Attributes
    ----------
    name : str
        Unique in the data set.
    content : str
        Hash of image, labels, neighbours and voxel size.
    kind : {"cell", "field"}
        A cell is brought to the network's size, a field keeps its scale.
    voxel_size : VoxelSize
    shape : tuple of int
    voxels : dict of str to int
        Voxels of every class that occurs.
    stage : int, optional
    denoised : bool
        The image was median filtered before it came in.
    provenance : dict
        Where image and labels are from, and what they replace.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    content: str
    kind: Kind
    voxel_size: VoxelSize
    shape: tuple[int, int, int]
    voxels: dict[str, int]
    stage: Stage | None = None
    denoised: bool = False
    provenance: dict[str, Any] = Field(default_factory=dict)


class Dataset(Frozen):
    """One version of a data set.

    Attributes
    ----------
    name : str
    version : int
        From 1, which is empty.
    taxonomy : Taxonomy
    samples : tuple of Sample
        By name.
    """

    name: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]
    version: Annotated[int, Field(ge=1)]
    taxonomy: Taxonomy
    samples: tuple[Sample, ...] = ()

    @property
    def digest(self) -> str:
        """Hash of everything a training sees: classes and the content, kind and stage of every sample."""
        seen = [s.model_dump(mode="json", exclude={"provenance", "voxels"}) for s in self.samples]
        whole = {"taxonomy": self.taxonomy.model_dump(mode="json"), "samples": seen}
        return hashlib.sha256(canonical_json(whole)).hexdigest()

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


def create_dataset(store: Store, name: str, taxonomy: Taxonomy) -> Dataset:
    """Make an empty data set.

    Raises
    ------
    InputError
        Where the name is not valid, or taken.
    """
    _check_name(name)
    dataset = Dataset(name=name, version=1, taxonomy=taxonomy)
    if not store.put_if_absent(_version_key(name, 1), canonical_json(dataset)):
        raise InputError(name, "is a data set already", "add to it with `cmseg dataset add`, or choose another name")
    return dataset


def read_dataset(store: Store, reference: str) -> Dataset:
    """Read the latest version of a data set (``name``), or a given one (``name@version``).

    Raises
    ------
    InputError
        Where there is no such data set or version.
    """
    name, _, wanted = reference.partition("@")
    _check_name(name)
    versions = _versions(store, name)
    if not versions:
        known = ", ".join(store.folders(DATASETS)) or "there is none yet"
        raise InputError(name, "is not a data set", f"create it with `cmseg dataset create`; known: {known}")
    if wanted and (not wanted.isdecimal() or int(wanted) not in versions):
        raise InputError(reference, "is not a version of the data set", f"the latest is {name}@{versions[-1]}")
    key = _version_key(name, int(wanted) if wanted else versions[-1])
    try:
        return Dataset.model_validate_json(store.get(key))
    except ValidationError as error:
        raise InputError(key, f"cannot be understood ({first_problem(error)})", "use an earlier version") from error


def write_arrays(store: Store, dataset: str, arrays: Mapping[str, np.ndarray], voxel_size: VoxelSize) -> str:
    """Store the arrays of a sample; returns the hash under which they lie.

    Parameters
    ----------
    store : Store
    dataset : str
    arrays : mapping of str to ndarray
        ``image`` and ``labels`` uint8, and where a cell has neighbours ``others`` bool; one shape (z, y, x).
    voxel_size : VoxelSize
    """
    content = _content(arrays, voxel_size)
    for name, array in arrays.items():
        data = io.BytesIO()
        tifffile.imwrite(
            data,
            array.astype(np.uint8),
            imagej=True,
            resolution=(1000 / voxel_size.x, 1000 / voxel_size.y),
            metadata={"axes": "ZYX", "spacing": voxel_size.z / 1000, "unit": "um"},
            compression="zlib",
            software=False,
            datetime=False,
        )
        store.put_if_absent(_array_key(dataset, content, name), data.getvalue())
    return content


def read_arrays(store: Store, dataset: str, sample: Sample) -> dict[str, np.ndarray]:
    """The arrays of a sample, as they were written.

    Raises
    ------
    InputError
        Where they are absent or no longer what they were.
    """
    mend = "restore it from a copy of the store, or add the sample again"
    arrays = {}
    for name, dtype in (("image", np.uint8), ("labels", np.uint8), ("others", np.bool_)):
        key = _array_key(dataset, sample.content, name)
        try:
            data = store.get(key)
        except KeyError as error:
            if name == "others":
                continue
            raise InputError(key, "is missing from the store", mend) from error
        try:
            arrays[name] = tifffile.imread(io.BytesIO(data)).reshape(sample.shape).astype(dtype)
        except Exception as error:  # whatever the bytes make of the reader
            raise InputError(key, f"cannot be read ({type(error).__name__})", mend) from error
    if _content(arrays, sample.voxel_size) != sample.content:
        raise InputError(f"{DATASETS}/{dataset}/samples/{sample.content}", "is not what was stored", mend)
    return arrays


def add_samples(store: Store, name: str, samples: Iterable[Sample]) -> Dataset:
    """Write a version with more samples, or others in place of those with the same name.

    Returns the version that holds them, which is the present one where nothing is new. Samples that others add at the
    same time are kept.
    """
    added = {sample.name: sample for sample in samples}
    for _ in range(_TRIES):
        latest = read_dataset(store, name)
        present = {sample.name: sample for sample in latest.samples}
        merged = present | {key: _succeeding(sample, present.get(key)) for key, sample in added.items()}
        if merged == present:
            return latest
        ordered = tuple(merged[key] for key in sorted(merged))
        grown = latest.model_copy(update={"version": latest.version + 1, "samples": ordered})
        if store.put_if_absent(_version_key(latest.name, grown.version), canonical_json(grown)):
            return grown
    raise ConnectionError(f"data set {name}: others kept writing versions")


def _succeeding(sample: Sample, former: Sample | None) -> Sample:
    """`sample` with a note of what it replaces; `former` itself where nothing that matters changed."""
    if former is None:
        return sample
    same = {"content", "kind", "stage", "denoised"}
    if sample.model_dump(include=same) == former.model_dump(include=same):
        return former
    return sample.model_copy(update={"provenance": {**sample.provenance, "replaces": former.content}})


def version_key(dataset: Dataset) -> str:
    """Where in the store this version is written down."""
    return _version_key(dataset.name, dataset.version)


def _versions(store: Store, name: str) -> list[int]:
    stems = (key.rsplit("/", 1)[1].removesuffix(".json") for key in store.list(f"{DATASETS}/{name}/versions"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _version_key(name: str, version: int) -> str:
    return f"{DATASETS}/{name}/versions/{version:06}.json"


def _array_key(dataset: str, content: str, name: str) -> str:
    return f"{DATASETS}/{dataset}/samples/{content}/{name}.tif"


def _content(arrays: Mapping[str, np.ndarray], voxel_size: VoxelSize) -> str:
    digest = hashlib.sha256(canonical_json(voxel_size))
    for name in sorted(arrays):
        digest.update(canonical_json({"name": name, "shape": list(arrays[name].shape)}))
        digest.update(np.ascontiguousarray(arrays[name], dtype=np.uint8).data)
    return digest.hexdigest()


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        mend = "use letters, digits, dots, underscores and hyphens, at most 100"
        raise InputError(repr(name), "is not a name for a data set", mend)
