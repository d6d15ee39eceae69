"""Cells told apart on the working grid, and brought to the native grid."""

from __future__ import annotations

import os

import numpy as np
from prefect import task

from cmseg_core.instances.regions import CellRegion, describe_cells
from cmseg_core.instances.rescale import rescale_regions
from cmseg_core.instances.watershed import separate_cells
from cmseg_core.preprocess.regrid import covering_voxel, nearest_slab
from cmseg_core.schema import InstancesConfig, VoxelSize
from cmseg_core.storage.stages import StageOutput, StageRef, slabs
from tasks.request import StoreAddress
from tasks.stage import HOUR, RESUMABLE, SLAB, opened, stage_output

REVISION = 2
HALF = 128
"""Evidence, of 255, from which a voxel belongs to a cell."""


@task(name="instances", task_run_name="instances", timeout_seconds=4 * HOUR, **RESUMABLE)
def instances(
    *,
    evidence: StageRef,
    shape: tuple[int, int, int],
    voxel_size: VoxelSize,
    cell_diameter_nm: float,
    config: InstancesConfig,
    store: StoreAddress,
) -> StageRef:
    """Separate cells: ``working`` on the working grid; ``cells``, ``foreground`` and ``regions.json`` on the native."""
    settings = {**config.model_dump(), "cell_diameter_nm": cell_diameter_nm, "voxel_size": voxel_size, "shape": shape}
    output = stage_output(store, "instances", {"foreground": evidence.key}, settings, REVISION)
    if not output.complete:
        found = opened(evidence, store)
        mask = np.asarray(found.array("foreground")[:]) >= HALF
        interior = np.asarray(found.array("interior")[:]) if found.summary["interior"] else None
        working_voxel = covering_voxel(shape, mask.shape, voxel_size)
        labels = separate_cells(
            mask,
            working_voxel,
            config,
            cell_diameter_nm=cell_diameter_nm,
            interior=interior,
            threads=os.cpu_count() or 1,
        )
        regions = rescale_regions(describe_cells(labels, working_voxel), labels.shape, shape)
        labels = labels.astype(np.uint16 if int(labels.max(initial=0)) < 1 << 16 else np.uint32)
        output.create_array("working", labels.shape, labels.dtype, depth=SLAB)[:] = labels
        _write_native(output, "cells", labels, shape)
        _write_native(output, "foreground", mask.view(np.uint8), shape)
        output.write_json("regions.json", [region.model_dump(mode="json") for region in regions])
        output.commit({"cells": len(regions)})
    return output.reference


def regions_of(separated: StageRef, store: StoreAddress) -> tuple[CellRegion, ...]:
    """The cells that were found, in the order of their ids."""
    return tuple(CellRegion.model_validate(entry) for entry in opened(separated, store).read_json("regions.json"))


def _write_native(output: StageOutput, name: str, working: np.ndarray, shape: tuple[int, int, int]) -> None:
    array = output.create_array(name, shape, working.dtype, depth=SLAB)
    for start, stop in slabs(shape, SLAB):
        array[start:stop] = nearest_slab(working, shape, start, stop)
