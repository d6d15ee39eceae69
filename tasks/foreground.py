"""Where cells are: evidence on the isotropic working grid."""

from __future__ import annotations

import numpy as np
from prefect import task

from cmseg_core.preprocess.regrid import shrink
from cmseg_core.preprocess.resample import working_shape
from cmseg_core.schema import ForegroundConfig, VoxelSize
from cmseg_core.storage.stages import StageRef
from cmseg_core.tracking.registry import ResolvedModel
from tasks.request import StoreAddress
from tasks.stage import HOUR, RESUMABLE, SLAB, opened, stage_output, volume_shape

REVISION = 2


def working_pixel_nm(config: ForegroundConfig) -> float:
    """Edge of a voxel of the working grid in nanometres."""
    return config.cell_diameter_nm / config.cell_diameter_px


@task(name="foreground", task_run_name="foreground", timeout_seconds=12 * HOUR, **RESUMABLE)
def foreground(
    *,
    preprocessed: StageRef,
    voxel_size: VoxelSize,
    config: ForegroundConfig,
    sam: ResolvedModel | None,
    store: StoreAddress,
) -> StageRef:
    """Find cells on the working grid: ``foreground`` (0..255) and, where the method gives it, ``interior`` (nm)."""
    inputs = {"preprocess": preprocessed.key} | ({"sam": sam.sha256} if sam else {})
    output = stage_output(store, "foreground", inputs, config, REVISION)
    if not output.complete:
        # PyTorch takes seconds to import: a run that resumes after this stage does without.
        from cmseg_core.foreground import find_cells, load_sam

        image = opened(preprocessed, store).array("image")
        pixel_nm = working_pixel_nm(config)
        native = volume_shape(image)
        shape = working_shape(native, voxel_size, pixel_nm)
        working = shrink(lambda start, stop: np.asarray(image[start:stop]), native, shape)
        evidence = find_cells(working, pixel_nm, config, load_sam(sam.path) if sam else None)
        output.create_array("foreground", shape, np.uint8, depth=SLAB)[:] = evidence.foreground
        if evidence.interior is not None:
            output.create_array("interior", shape, np.float32, depth=SLAB)[:] = evidence.interior
        output.commit({"interior": evidence.interior is not None})
    return output.reference
