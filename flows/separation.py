"""Cells found and told apart, piece by piece: sections of three directions, then blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefect import Task, unmapped

from cmseg_core.foreground.runs import section_runs
from cmseg_core.instances.blocks import Block, blocks
from cmseg_core.preprocess.regrid import covering_voxel
from cmseg_core.preprocess.resample import Grid
from cmseg_core.schema import ForegroundConfig, InstancesConfig, VoxelSize
from cmseg_core.storage.stages import StageOutput, StageRef
from cmseg_core.tracking.registry import ResolvedModel
from tasks import foreground as finding
from tasks import instances as parting
from tasks.gpu import leave_gpu
from tasks.request import StoreAddress
from tasks.stage import SLAB, opened, volume_shape

Tell = Callable[[int, int], None]
"""Is told how many of a number of things are done."""


def find_and_separate(
    *,
    preprocessed: StageRef,
    shape: Grid,
    voxel_size: VoxelSize,
    config: ForegroundConfig,
    instances: InstancesConfig,
    sam: ResolvedModel | None,
    edge: int,
    store: StoreAddress,
    limit: str | None = None,
    tell: Tell | None = None,
) -> tuple[StageRef, StageRef]:
    """Find the cells of an acquisition and tell them apart.

    Parameters
    ----------
    preprocessed : StageRef
    shape : tuple of int
        Of the acquisition.
    voxel_size : VoxelSize
    config : ForegroundConfig
    instances : InstancesConfig
    sam : ResolvedModel, optional
        Needed for the method ``sam``.
    edge : int
        Of a block in voxels of the working grid, a multiple of 64. It decides how much memory is needed, and nothing
        else.
    store : StoreAddress
    limit : str, optional
        See :func:`tasks.slots.slot`.
    tell : callable, optional
        Is told how many runs of sections were looked at, and how many there are.

    Returns
    -------
    evidence, separated : StageRef
        See :mod:`tasks.foreground` and :mod:`tasks.instances`.
    """
    working = finding.working_grid(
        preprocessed=preprocessed, voxel_size=voxel_size, pixel_nm=finding.working_pixel_nm(config), store=store
    )
    grid = volume_shape(opened(working, store).array("image"))
    evidence = _evidence(working, grid, config, sam, edge, store, limit, tell)
    voxel = covering_voxel(shape, grid, voxel_size)
    cell = config.cell_diameter_nm
    made = parting.instances_output(evidence, shape, voxel_size, cell, instances, store)
    if made.complete:
        return evidence, made.reference
    boxes = blocks(grid, edge)
    interior = config.method == "sam"
    given: dict[str, Any] = {
        "voxel_size": voxel,
        "cell_diameter_nm": cell,
        "config": instances,
        "interior": interior,
        "store": store,
    }
    drawn = parting.landscape_output(evidence, grid, voxel, cell, instances, interior, store)
    landscape = in_parts(drawn, boxes, parting.draw_block, evidence=evidence, **given)
    flooded = parting.basins_output(landscape, grid, edge, store)
    basins = in_parts(flooded, boxes, parting.basins_of_block, landscape=landscape, interior=interior, store=store)
    joined = parting.join_blocks(basins=basins, blocks=boxes, **given)
    parting.make_room(made, grid, opened(joined, store).summary["cells"])
    do_parts(made, boxes, parting.label_block, basins=basins, joined=joined, store=store)
    separated = parting.finish_cells(
        output=made.reference,
        evidence=evidence,
        joined=joined,
        blocks=boxes,
        edge=edge,
        shape=shape,
        working_voxel=voxel,
        store=store,
    )
    return evidence, separated


def _evidence(
    working: StageRef,
    grid: Grid,
    config: ForegroundConfig,
    sam: ResolvedModel | None,
    edge: int,
    store: StoreAddress,
    limit: str | None,
    tell: Tell | None,
) -> StageRef:
    if config.method == "threshold":
        threshold = finding.choose_threshold(working=working, store=store)
        output = finding.evidence_output(threshold, grid, config, store)
        slabs = [Block((z, 0, 0), (min(z + SLAB, grid[0]), *grid[1:]), grid) for z in range(0, grid[0], SLAB)]
        return in_parts(
            output, slabs, finding.apply_threshold, working=working, threshold=threshold, config=config, store=store
        )
    if sam is None:
        raise ValueError("the method 'sam' needs a model")
    looking = finding.looks_output(working, grid, config, sam, store)
    output = finding.evidence_output(looking.reference, grid, config, store)
    if output.complete:
        return output.reference
    runs = [
        finding.SectionRun(axis, start, stop)
        for axis in range(config.directions)
        for start, stop in section_runs(grid[axis], config)
    ]
    try:
        looks = in_parts(
            looking,
            runs,
            finding.look_at_sections,
            tell,
            working=working,
            config=config,
            sam=sam,
            store=store,
            limit=limit,
        )
    finally:
        leave_gpu()
    return in_parts(output, blocks(grid, edge), finding.combine_looks, looks=looks, config=config, store=store)


def in_parts(
    output: StageOutput, parts: Sequence[Any], work: Task[..., None], tell: Tell | None = None, **given: Any
) -> StageRef:
    """Make an output with a task for each of its parts, and declare it complete."""
    if not output.complete:
        do_parts(output, parts, work, tell, **given)
        output.commit()
    return output.reference


def do_parts(
    output: StageOutput, parts: Sequence[Any], work: Task[..., None], tell: Tell | None = None, **given: Any
) -> None:
    """Run a task for each part of an output that is missing; where one fails, only once all others are done."""
    finished = output.finished_parts()
    missing = [part for part in parts if part.name not in finished]
    same: Any = {name: unmapped(value) for name, value in given.items()}
    futures = work.map(part=missing, output=unmapped(output.reference), **same)
    for done, future in enumerate(futures, 1 + len(parts) - len(missing)):
        future.wait()
        if tell is not None:
            tell(done, len(parts))
    futures.result()
