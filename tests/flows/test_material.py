"""What reaches a training from a data set of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmseg_core.preprocess.median import median_3x3x3
from cmseg_core.schema import C_MEROLAE, PipelineConfig, VoxelSize
from cmseg_core.storage.datasets import Sample, add_samples, create_dataset, write_arrays
from cmseg_core.storage.store import Store
from flows.material import find_material, read_all

SIZE = VoxelSize(z=5, y=5, x=5)


def test_cells_are_filtered_as_in_the_pipeline_and_fields_are_not(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 8)).astype(np.uint8)
    content = write_arrays(store, "mine", {"image": image, "labels": np.ones_like(image)}, SIZE)
    facts = {"content": content, "voxel_size": SIZE, "shape": image.shape, "voxels": {}}
    kinds = {"a": {"kind": "cell"}, "b": {"kind": "cell", "denoised": True}, "c": {"kind": "field"}}
    create_dataset(store, "mine", C_MEROLAE)
    add_samples(store, "mine", [Sample.model_validate({**facts, **kind, "name": n}) for n, kind in kinds.items()])
    pipeline = PipelineConfig()
    cell, denoised, field = read_all(find_material("mine", lambda: store, pipeline), lambda: store, pipeline, print)
    assert np.array_equal(cell.image, median_3x3x3(image)) and not np.array_equal(cell.image, image)
    assert np.array_equal(denoised.image, image)
    assert np.array_equal(field.image, image) and field.field
