"""How much memory an acquisition needs, and blocks small enough for what there is."""

from __future__ import annotations

import math

import numpy as np

from cmseg_core.errors import InputError
from cmseg_core.instances.landscape import landscape_halo
from cmseg_core.machine import machine_limit_gb
from cmseg_core.preprocess.regrid import covering_voxel
from cmseg_core.preprocess.resample import Grid, working_shape
from cmseg_core.schema import VoxelSize
from tasks.foreground import working_pixel_nm
from tasks.request import AcquisitionRequest
from tasks.stage import SLAB

EDGES = (256, 128, 64)
"""Of blocks in voxels, the best first: the smaller, the larger the share of a block's halo."""
BLOCK_BYTES = 42
"""Memory a voxel of a block with its halo takes at the widest point."""
SECTION_BYTES = 900
"""Memory a voxel of a whole section of the working grid takes where whole sections are worked on, some at a time."""
BASE_GB = 1.5
"""Memory of the libraries and the models."""


def plan_blocks(request: AcquisitionRequest, shape: Grid, dtype: np.dtype, voxel_size: VoxelSize) -> int:
    """Edge of the largest blocks for which the memory is enough that a request, and the machine, allow.

    Raises
    ------
    InputError
        Where it is not enough for the smallest ones either.
    """
    config, allowed = request.config, min(request.max_memory_gb, machine_limit_gb())
    section = shape[1] * shape[2]
    slabs = section * min(SLAB, shape[0]) * (2 * dtype.itemsize + 4)
    truth = section * shape[0] * 2 * sum(path is not None for path in (request.truth_cells, request.truth_organelles))
    grid = working_shape(shape, voxel_size, working_pixel_nm(config.foreground))
    halo = landscape_halo(covering_voxel(shape, grid, voxel_size), config.instances, config.foreground.cell_diameter_nm)
    need = math.inf
    edges = (request.block_edge,) if request.block_edge else EDGES
    for edge in edges:
        block = math.prod(min(n, edge + 2 * margin) for n, margin in zip(grid, halo, strict=True)) * BLOCK_BYTES
        working = max(block, grid[1] * grid[2] * SECTION_BYTES)
        need = BASE_GB + (max(working, slabs) + truth) / 1e9
        if need <= allowed:
            return edge
    source, reason = request.origin or request.source, f"needs about {need:.1f} GB of memory"
    smaller = "set a smaller foreground.cell_diameter_px, or cut the field into smaller ones"
    if allowed < request.max_memory_gb:
        raise InputError(
            source, f"{reason}, this machine or container has {allowed:.1f} GB", f"give it more, {smaller}"
        )
    raise InputError(source, f"{reason}, the limit is {request.max_memory_gb:g} GB", f"raise --max-memory, {smaller}")
