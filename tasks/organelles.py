"""Organelles of one cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from prefect import task

from cmseg_core.instances.regions import CellRegion, crop_box
from cmseg_core.schema import OrganellesConfig, PreprocessConfig, VoxelSize
from cmseg_core.storage.stages import StageRef
from cmseg_core.tracking.registry import ResolvedModel
from tasks.gpu import on_gpu
from tasks.models import organelle_model
from tasks.request import StoreAddress
from tasks.slots import slot
from tasks.stage import HOUR, RESUMABLE, opened, stage_output, volume_shape

if TYPE_CHECKING:
    from cmseg_core.organelles.inference import CellSegmentation

REVISION = 3


@task(name="organelles", task_run_name="organelles-{region.cell_id}", timeout_seconds=HOUR, **RESUMABLE)
def organelles(
    *,
    region: CellRegion,
    preprocessed: StageRef,
    separated: StageRef,
    voxel_size: VoxelSize,
    unet: ResolvedModel,
    config: OrganellesConfig,
    preprocess: PreprocessConfig,
    store: StoreAddress,
    limit: str | None = None,
) -> StageRef:
    """Label the organelles of one cell: ``labels`` and ``confidence`` on the native grid of its crop."""
    inputs = {"preprocess": preprocessed.key, "instances": separated.key, "unet": unet.sha256}
    filters = preprocess.model_dump(exclude={"window_percentiles", "stretch_8bit", "median_size"})
    settings = {"cell": region.cell_id, "organelles": config, "preprocess": filters}
    output = stage_output(store, "organelles", inputs, settings, REVISION)
    if not output.complete:
        image = opened(preprocessed, store).array("image")
        box = crop_box(region, volume_shape(image), voxel_size, config.margin_nm)
        ids = np.asarray(opened(separated, store).array("cells")[box])
        own = ids == region.cell_id
        with slot(limit):
            crop = np.ascontiguousarray(image[box])
            found = on_gpu(_labelled, crop, own, (ids > 0) & ~own, voxel_size, unet, config, preprocess)
        output.create_array("labels", found.labels.shape, np.uint8)[:] = found.labels
        output.create_array("confidence", found.confidence.shape, np.uint8)[:] = found.confidence
        output.commit({"disagreement": found.disagreement, "expected_iou": found.expected_iou})
    return output.reference


def _labelled(
    image: np.ndarray,
    own: np.ndarray,
    others: np.ndarray,
    voxel_size: VoxelSize,
    unet: ResolvedModel,
    config: OrganellesConfig,
    preprocess: PreprocessConfig,
) -> CellSegmentation:
    # TensorFlow is imported only where a cell is labelled.
    from cmseg_core.organelles.inference import segment_cell

    return segment_cell(image, own, others, voxel_size, organelle_model(unet), config, preprocess)
