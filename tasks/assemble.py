"""The organelles of all cells as one label volume of the field."""

from __future__ import annotations

import numpy as np
from prefect import task

from cmseg_core.instances.regions import CellRegion, crop_box
from cmseg_core.organelles.assembly import PlacedCell, assemble_slab
from cmseg_core.schema import VoxelSize
from cmseg_core.storage.stages import StageRef, slabs
from tasks.instances import regions_of
from tasks.request import StoreAddress
from tasks.stage import HOUR, RESUMABLE, SLAB, opened, stage_output, volume_shape

REVISION = 1


@task(name="assemble", task_run_name="assemble", timeout_seconds=4 * HOUR, **RESUMABLE)
def assemble(
    *,
    separated: StageRef,
    labelled: dict[int, StageRef],
    voxel_size: VoxelSize,
    margin_nm: float,
    store: StoreAddress,
) -> StageRef:
    """Put the cells' own labels together, slab by slab, as ``organelles``; a cell without labels stays empty."""
    inputs = {"instances": separated.key} | {str(cell): ref.key for cell, ref in labelled.items()}
    output = stage_output(store, "assemble", inputs, {"margin_nm": margin_nm, "voxel_size": voxel_size}, REVISION)
    if not output.complete:
        cells = opened(separated, store).array("cells")
        placed = [
            place(region, labelled[region.cell_id], volume_shape(cells), voxel_size, margin_nm, store)
            for region in regions_of(separated, store)
            if region.cell_id in labelled
        ]
        array = output.create_array("organelles", cells.shape, np.uint8, depth=SLAB)
        for start, stop in slabs(cells.shape, SLAB):
            array[start:stop] = assemble_slab(np.asarray(cells[start:stop]), start, placed)
        output.commit()
    return output.reference


def place(
    region: CellRegion,
    labelled: StageRef,
    shape: tuple[int, int, int],
    voxel_size: VoxelSize,
    margin_nm: float,
    store: StoreAddress,
) -> PlacedCell:
    """The labels of one cell with the place of its crop in the field."""
    box = crop_box(region, shape, voxel_size, margin_nm)
    return PlacedCell(region.cell_id, box, opened(labelled, store).array("labels"))
