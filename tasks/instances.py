"""Cells told apart on the working grid, block by block, and brought to the native grid."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from prefect import task

from cmseg_core.foreground.runs import LEAST_EVIDENCE
from cmseg_core.instances.basins import BasinTable, find_basins
from cmseg_core.instances.blocks import Block
from cmseg_core.instances.landscape import Landscape, draw_landscape, landscape_halo
from cmseg_core.instances.merging import collect, name_cells
from cmseg_core.instances.regions import CellRegion, CellSums, describe_sums, sum_cells
from cmseg_core.instances.rescale import rescale_regions
from cmseg_core.instances.seams import check_seams
from cmseg_core.preprocess.regrid import nearest_slab
from cmseg_core.preprocess.resample import Grid
from cmseg_core.schema import InstancesConfig, VoxelSize
from cmseg_core.storage.stages import StageOutput, StageRef, slabs
from cmseg_core.storage.tables import pack, unpack
from tasks.foreground import WORKING_CHUNKS
from tasks.request import StoreAddress
from tasks.stage import HOUR, RESUMABLE, SLAB, opened, stage_output, volume_shape

CLIMB_VOXELS = 40
"""Surroundings of a block in which ascents are followed. Nearly all end there; where one does not, another block is
asked."""


@dataclass(frozen=True, eq=False)
class CellOfLabel:
    """Cell of each label of a block, from 0, which is none: ndarray of uint32."""

    cell: np.ndarray


def landscape_output(
    evidence: StageRef,
    shape: Grid,
    voxel_size: VoxelSize,
    cell_diameter_nm: float,
    config: InstancesConfig,
    interior: bool,
    store: StoreAddress,
) -> StageOutput:
    """Where the landscape stands: ``height`` and ``distance``, one and the same where there is no ``interior``."""
    settings = {"h_nm": config.h_nm, "cell_diameter_nm": cell_diameter_nm, "voxel_size": voxel_size}
    output = stage_output(store, "landscape", {"foreground": evidence.key}, settings, 1)
    if not output.complete:
        for name in ("height", "distance") if interior else ("distance",):
            output.create_array(name, shape, np.float32, WORKING_CHUNKS)
    return output


@task(name="landscape", task_run_name="landscape-{part.name}", timeout_seconds=HOUR, **RESUMABLE)
def draw_block(
    *,
    part: Block,
    output: StageRef,
    evidence: StageRef,
    voxel_size: VoxelSize,
    cell_diameter_nm: float,
    config: InstancesConfig,
    interior: bool,
    store: StoreAddress,
) -> None:
    """The landscape of a block of the working grid, whose voxels are of `voxel_size`."""
    seen = part.grown(landscape_halo(voxel_size, config, cell_diameter_nm))
    found = opened(evidence, store)
    landscape = draw_landscape(
        np.asarray(found.array("foreground")[seen.box]) >= LEAST_EVIDENCE,
        voxel_size,
        config,
        cell_diameter_nm=cell_diameter_nm,
        interior=np.asarray(found.array("interior")[seen.box]) if interior else None,
        threads=os.cpu_count() or 1,
    )
    made, inner = opened(output, store), part.within(seen)
    made.array("distance", writable=True)[part.box] = landscape.distance[inner]
    if interior:
        made.array("height", writable=True)[part.box] = landscape.height[inner]
    made.finish_part(part.name)


def basins_output(landscape: StageRef, shape: Grid, edge: int, store: StoreAddress) -> StageOutput:
    """Where the basins of blocks of `edge` voxels stand: ``labels``, of each block by itself, and its table as part."""
    output = stage_output(store, "basins", {"landscape": landscape.key}, {"edge": edge, "climb": CLIMB_VOXELS}, 1)
    if not output.complete:
        output.create_array("labels", shape, np.uint32, WORKING_CHUNKS)
    return output


@task(name="basins", task_run_name="basins-{part.name}", timeout_seconds=HOUR, **RESUMABLE)
def basins_of_block(*, part: Block, output: StageRef, landscape: StageRef, interior: bool, store: StoreAddress) -> None:
    """The basins of a block, and the passes between them."""
    seen = part.grown((CLIMB_VOXELS, CLIMB_VOXELS, CLIMB_VOXELS))
    found = opened(landscape, store)
    distance = np.asarray(found.array("distance")[seen.box])
    height = np.asarray(found.array("height")[seen.box]) if interior else distance
    labels, table = find_basins(Landscape(height, distance), distance > 0, part, seen)
    made = opened(output, store)
    made.array("labels", writable=True)[part.box] = labels
    made.finish_part(part.name, pack(table))


@task(name="join", task_run_name="join", timeout_seconds=HOUR, **RESUMABLE)
def join_blocks(
    *,
    basins: StageRef,
    blocks: Sequence[Block],
    voxel_size: VoxelSize,
    cell_diameter_nm: float,
    config: InstancesConfig,
    interior: bool,
    store: StoreAddress,
) -> StageRef:
    """Join the basins of all blocks to cells: ``<block>.npz`` holds `CellOfLabel`."""
    settings = {"instances": config, "cell_diameter_nm": cell_diameter_nm, "voxel_size": voxel_size}
    output = stage_output(store, "join", {"basins": basins.key}, settings, 1)
    if not output.complete:
        found = opened(basins, store)
        tables = [unpack(BasinTable, found.read_part(block.name)) for block in blocks]
        together = collect(tables, _asking(found.array("labels"), blocks, tables))
        cells = name_cells(
            together,
            blocks[0].shape,
            voxel_size,
            config,
            cell_diameter_nm=cell_diameter_nm,
            interior=interior,
        )
        for block, cell in zip(blocks, cells.of_label, strict=True):
            output.write_bytes(f"{block.name}.npz", pack(CellOfLabel(cell)))
        output.commit({"basins": len(together.peak), "cells": cells.count, "dropped": cells.dropped})
    return output.reference


def _asking(labels: zarr.Array, blocks: Sequence[Block], tables: Sequence[BasinTable]) -> Callable[..., Any]:
    """Looks up where voxels belong in their own block."""
    edges = [sorted({block.start[axis] for block in blocks}) for axis in range(3)]
    number = {block.start: n for n, block in enumerate(blocks)}

    def lookup(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = np.stack(np.unravel_index(voxels, blocks[0].shape), axis=1)
        starts = np.stack(
            [np.array(e)[np.searchsorted(e, places[:, axis], side="right") - 1] for axis, e in enumerate(edges)], axis=1
        )
        peaks, left = np.empty(len(voxels), np.int64), np.empty(len(voxels), bool)
        for corner in np.unique(starts, axis=0):
            mine = np.flatnonzero((starts == corner).all(axis=1))
            n = number[(int(corner[0]), int(corner[1]), int(corner[2]))]
            inside = np.asarray(labels[blocks[n].box])
            rows = inside[tuple((places[mine] - corner).T)].astype(np.int64) - 1
            peaks[mine], left[mine] = tables[n].peak[rows], tables[n].left[rows]
        return peaks, left

    return lookup


def instances_output(
    evidence: StageRef,
    shape: Grid,
    voxel_size: VoxelSize,
    cell_diameter_nm: float,
    config: InstancesConfig,
    store: StoreAddress,
) -> StageOutput:
    """Where the cells stand: ``working`` on the working grid; ``cells``, ``foreground``, its ``confidence`` in per cent
    and ``regions.json`` on the native one of `shape` and `voxel_size`. The size of the blocks decides nothing."""
    settings = {**config.model_dump(), "cell_diameter_nm": cell_diameter_nm, "voxel_size": voxel_size, "shape": shape}
    return stage_output(store, "instances", {"foreground": evidence.key}, settings, 3)


def make_room(output: StageOutput, shape: Grid, cells: int) -> None:
    """Make ``working``, which blocks are written to, for ids up to `cells`."""
    output.create_array("working", shape, np.uint16 if cells < 1 << 16 else np.uint32, WORKING_CHUNKS)


@task(name="cells", task_run_name="cells-{part.name}", timeout_seconds=HOUR, **RESUMABLE)
def label_block(*, part: Block, output: StageRef, basins: StageRef, joined: StageRef, store: StoreAddress) -> None:
    """Write the cells of a block, and what their voxels add up to."""
    of_label = unpack(CellOfLabel, opened(joined, store).read_bytes(f"{part.name}.npz"))
    labels = of_label.cell[np.asarray(opened(basins, store).array("labels")[part.box])]
    made = opened(output, store)
    array = made.array("working", writable=True)
    array[part.box] = labels.astype(array.dtype)
    made.finish_part(part.name, pack(sum_cells(labels, part.start)))


@task(name="instances", task_run_name="instances", timeout_seconds=4 * HOUR, **RESUMABLE)
def finish_cells(
    *,
    output: StageRef,
    evidence: StageRef,
    joined: StageRef,
    blocks: Sequence[Block],
    edge: int,
    shape: Grid,
    working_voxel: VoxelSize,
    store: StoreAddress,
) -> StageRef:
    """Describe the cells and bring them to the native grid, once the seams of the blocks have proved to be none.

    Raises
    ------
    RuntimeError
        Where cells end at the seams of blocks more often than beside them.
    """
    made = opened(output, store)
    if not made.complete:
        labels = made.array("working")
        seams = check_seams(labels, edge)
        sums = CellSums.together([unpack(CellSums, made.read_part(block.name)) for block in blocks])
        described = describe_sums(sums, lambda box: np.asarray(labels[box]), volume_shape(labels), working_voxel)
        regions = rescale_regions(described, volume_shape(labels), shape)
        _write_native(made, "cells", labels, labels.dtype, shape, lambda slab: slab)
        mask = opened(evidence, store).array("foreground")
        _write_native(made, "foreground", mask, mask.dtype, shape, lambda slab: (slab >= LEAST_EVIDENCE).view(np.uint8))
        _write_native(made, "confidence", mask, mask.dtype, shape, _percent)
        made.write_json("regions.json", [region.model_dump(mode="json") for region in regions])
        dropped = opened(joined, store).summary["dropped"]
        made.commit({"cells": len(regions), "dropped": dropped, "seams": seams})
    return made.reference


def regions_of(separated: StageRef, store: StoreAddress) -> tuple[CellRegion, ...]:
    """The cells that were found, in the order of their ids."""
    return tuple(CellRegion.model_validate(entry) for entry in opened(separated, store).read_json("regions.json"))


def _percent(evidence: np.ndarray) -> np.ndarray:
    return ((evidence.astype(np.uint16) * 100 + 127) // 255).astype(np.uint8)


def _write_native(
    output: StageOutput,
    name: str,
    working: zarr.Array,
    dtype: np.dtype,
    shape: Grid,
    seen_as: Callable[[np.ndarray], np.ndarray],
) -> None:
    array = output.create_array(name, shape, dtype, depth=SLAB)
    for start, stop in slabs(shape, SLAB):
        array[start:stop] = seen_as(nearest_slab(working, shape, start, stop))
