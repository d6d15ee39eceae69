"""Data sets: versions that never change, samples that are kept, and others who write at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.schema import C_MEROLAE, VoxelSize
from cmseg_core.storage.datasets import (
    Dataset,
    Sample,
    add_samples,
    create_dataset,
    read_arrays,
    read_dataset,
    write_arrays,
)
from cmseg_core.storage.store import Store

SIZE = VoxelSize(z=30, y=20, x=20)


def volumes(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (3, 5, 4)
    return {
        "image": rng.integers(0, 256, shape).astype(np.uint8),
        "labels": rng.integers(0, 6, shape).astype(np.uint8),
        "others": rng.random(shape) < 0.5,
    }


def sample(store: Store, name: str, seed: int, **changes: object) -> Sample:
    content = write_arrays(store, "cells", volumes(seed), SIZE)
    facts = {"name": name, "content": content, "kind": "cell", "voxel_size": SIZE, "shape": (3, 5, 4), "voxels": {}}
    return Sample.model_validate(facts | changes)


@pytest.fixture
def dataset(store: Store) -> Dataset:
    return create_dataset(store, "cells", C_MEROLAE)


def test_a_data_set_starts_empty_and_its_name_is_taken_once(store: Store, dataset: Dataset) -> None:
    assert read_dataset(store, "cells") == dataset
    assert dataset.reference == "cells@1"
    assert not dataset.samples
    with pytest.raises(InputError, match="is a data set already"):
        create_dataset(store, "cells", C_MEROLAE)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-a", "a@1", "a" * 101])
def test_a_name_that_leads_elsewhere_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InputError, match="is not a name for a data set"):
        create_dataset(store, name, C_MEROLAE)


@pytest.mark.parametrize("reference", ["other", "cells@0", "cells@2", "cells@x", "cells@"])
def test_what_is_not_there_is_told(store: Store, dataset: Dataset, reference: str) -> None:
    if reference == "cells@":
        assert read_dataset(store, reference) == dataset
        return
    with pytest.raises(InputError, match="is not a"):
        read_dataset(store, reference)


def test_arrays_come_back_as_they_were(store: Store, dataset: Dataset) -> None:
    one = sample(store, "a", 0)
    arrays = read_arrays(store, "cells", one)
    for name, array in volumes(0).items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_a_changed_array_is_noticed(store: Store, dataset: Dataset) -> None:
    one = sample(store, "a", 0)
    other = write_arrays(store, "cells", volumes(1), SIZE)
    labels = f"datasets/cells/samples/{one.content}/labels.tif"
    store.put(labels, store.get(f"datasets/cells/samples/{other}/labels.tif"))
    with pytest.raises(InputError, match="is not what was stored"):
        read_arrays(store, "cells", one)
    store.put(labels, b"\x80\x04not a picture")
    with pytest.raises(InputError, match="cannot be read"):
        read_arrays(store, "cells", one)


def test_missing_arrays_are_told(store: Store, dataset: Dataset) -> None:
    lost = sample(store, "a", 0, content="0" * 64)
    with pytest.raises(InputError, match=r"image\.tif: is missing"):
        read_arrays(store, "cells", lost)


def test_versions_grow_and_former_ones_stay(store: Store, dataset: Dataset) -> None:
    first = add_samples(store, "cells", [sample(store, "b", 0), sample(store, "a", 1)])
    assert (first.version, [s.name for s in first.samples]) == (2, ["a", "b"])
    assert add_samples(store, "cells", [sample(store, "a", 1)]) == first, "nothing is new"
    second = add_samples(store, "cells", [sample(store, "a", 2)])
    assert second.version == 3
    replaced = next(s for s in second.samples if s.name == "a")
    assert replaced.provenance["replaces"] == first.samples[0].content
    assert read_dataset(store, "cells@2") == first
    assert read_dataset(store, "cells") == second
    assert len({dataset.digest, first.digest, second.digest}) == 3


def test_the_digest_is_of_what_a_training_sees(store: Store, dataset: Dataset) -> None:
    def digest(**changes: object) -> str:
        return dataset.model_copy(update={"samples": (sample(store, "a", 0, **changes),)}).digest

    assert digest() == digest(provenance={"image": "elsewhere"})
    assert len({digest(), digest(stage=2), digest(kind="field"), digest(denoised=True)}) == 4


def test_no_sample_is_lost_where_many_add_at_once(store: Store, dataset: Dataset) -> None:
    samples = [sample(store, f"s{n}", n) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: add_samples(store, "cells", [one]), samples))
    last = read_dataset(store, "cells")
    assert {s.name for s in last.samples} == {s.name for s in samples}
    assert last.version == 9
