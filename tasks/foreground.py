"""Where cells are: evidence on the isotropic working grid, made piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import zarr
from prefect import task

from cmseg_core.foreground.runs import LEAST_EVIDENCE, around, section_runs
from cmseg_core.foreground.threshold import Read, Threshold, find_threshold, threshold_slab
from cmseg_core.instances.blocks import Block
from cmseg_core.preprocess.regrid import shrink
from cmseg_core.preprocess.resample import Grid, working_shape
from cmseg_core.schema import ForegroundConfig, VoxelSize
from cmseg_core.storage.stages import CHUNK, StageOutput, StageRef, slabs
from cmseg_core.tracking.registry import ResolvedModel
from tasks.gpu import on_gpu
from tasks.request import StoreAddress
from tasks.slots import slot
from tasks.stage import HOUR, RESUMABLE, SLAB, opened, stage_output, volume_shape

if TYPE_CHECKING:
    from cmseg_core.foreground.evidence import Look
    from cmseg_core.foreground.generator import MaskGenerator
    from cmseg_core.foreground.reading import HeadReader

WORKING_CHUNKS = (CHUNK, CHUNK, CHUNK)
"""Of arrays on the working grid, so that blocks of any multiple of 64 never write to the same object."""
_LOOK_TILE = 256
"""Edge in voxels of a chunk of what is seen in sections, which is as thick as a run of sections."""
_LOADING = Lock()
"""Threads of one process wait for the first to load the model."""
_SECTIONS_AT_ONCE = 16
"""Whole sections whose threshold is taken at a time."""


@dataclass(frozen=True)
class SectionRun:
    """Sections of one direction that one task looks at."""

    axis: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of the part that it makes."""
        return f"{'zyx'[self.axis]}-{self.start}"


def working_pixel_nm(config: ForegroundConfig) -> float:
    """Edge of a voxel of the working grid in nanometres."""
    return config.cell_diameter_nm / config.cell_diameter_px


@task(name="working-grid", task_run_name="working-grid", timeout_seconds=4 * HOUR, **RESUMABLE)
def working_grid(*, preprocessed: StageRef, voxel_size: VoxelSize, pixel_nm: float, store: StoreAddress) -> StageRef:
    """Bring ``image`` to the working grid."""
    settings = {"voxel_size": voxel_size, "pixel_nm": pixel_nm}
    output = stage_output(store, "working", {"preprocess": preprocessed.key}, settings, 1)
    if not output.complete:
        image = opened(preprocessed, store).array("image")
        native = volume_shape(image)
        shape = working_shape(native, voxel_size, pixel_nm)
        sections = shrink(lambda start, stop: np.asarray(image[start:stop]), native, shape)
        array = output.create_array("image", shape, np.uint8, WORKING_CHUNKS)
        for start, stop in slabs(shape, SLAB):
            array[start:stop] = np.stack([next(sections) for _ in range(start, stop)])
        output.commit()
    return output.reference


# ------------------------------------------------------------------------------------------- Segment Anything


def looks_output(
    working: StageRef, shape: Grid, config: ForegroundConfig, sam: ResolvedModel, store: StoreAddress
) -> StageOutput:
    """Where what is seen in sections stands: ``probability-<axis>`` and ``interior-<axis>``, along that axis first."""
    settings = config.model_dump(exclude={"z_smoothing_nm"})
    output = stage_output(store, "looks", {"working": working.key, "sam": sam.sha256}, settings, 1)
    if not output.complete:
        for axis in range(config.directions):
            along = (shape[axis], *(n for other, n in enumerate(shape) if other != axis))
            depth = section_runs(along[0], config)[0][1]
            chunks = tuple(min(n, m) for n, m in zip(along, (depth, _LOOK_TILE, _LOOK_TILE), strict=True))
            output.create_array(f"probability-{axis}", along, np.uint8, chunks)
            output.create_array(f"interior-{axis}", along, np.float32, chunks)
    return output


@task(name="look", task_run_name="look-{part.name}", timeout_seconds=12 * HOUR, **RESUMABLE)
def look_at_sections(
    *,
    part: SectionRun,
    output: StageRef,
    working: StageRef,
    config: ForegroundConfig,
    sam: ResolvedModel,
    store: StoreAddress,
    limit: str | None = None,
) -> None:
    """See the cells of a run of sections."""
    image = opened(working, store).array("image")
    first, last = around(part.start, part.stop, image.shape[part.axis])
    wanted = tuple(slice(first, last) if axis == part.axis else slice(None) for axis in range(3))
    sections = np.ascontiguousarray(np.moveaxis(np.asarray(image[wanted]), part.axis, 0))
    with slot(limit):
        seen = on_gpu(_seen, sections, part.start - first, part.stop - first, config, sam, apart=True)
    made = opened(output, store)
    for name, values in zip(("probability", "interior"), seen, strict=True):
        made.array(f"{name}-{part.axis}", writable=True)[part.start : part.stop] = values
    made.finish_part(part.name)


def _seen(sections: np.ndarray, start: int, stop: int, config: ForegroundConfig, sam: ResolvedModel) -> Look:
    # PyTorch takes seconds to import: a run that resumes after this stage does without.
    from cmseg_core.foreground.evidence import look

    with _LOADING:
        finder = _finder(sam.path, sam.sha256, config.model_dump_json())
    return look(sections, start, stop, working_pixel_nm(config), finder)


@lru_cache(maxsize=1)
def _finder(path: str, _sha256: str, config: str) -> MaskGenerator | HeadReader:
    """The model, loaded once a process however many sections it looks at."""
    from cmseg_core.foreground.evidence import make_finder
    from cmseg_core.foreground.sam import load_sam

    return make_finder(load_sam(path), ForegroundConfig.model_validate_json(config))


@task(name="evidence", task_run_name="evidence-{part.name}", timeout_seconds=4 * HOUR, **RESUMABLE)
def combine_looks(
    *, part: Block, output: StageRef, looks: StageRef, config: ForegroundConfig, store: StoreAddress
) -> None:
    """Evidence of a block from what was seen in the sections of all directions."""
    from cmseg_core.foreground.evidence import combine, combine_halo, largest_hole
    from cmseg_core.foreground.holes import close_holes

    pixel_nm = working_pixel_nm(config)
    halo, hole = combine_halo(pixel_nm, config), largest_hole(config)
    sure = part.grown((0, hole + 1, hole + 1))
    seen = sure.grown((halo, halo, halo))
    found = opened(looks, store)

    def read(name: str, axis: int) -> np.ndarray:
        box = (seen.box[axis], *(span for other, span in enumerate(seen.box) if other != axis))
        return np.moveaxis(np.asarray(found.array(f"{name}-{axis}")[box]), 0, axis)

    pairs = [(read("probability", axis), read("interior", axis)) for axis in range(config.directions)]
    evidence = combine(pairs, pixel_nm, config)
    closed = close_holes(evidence.foreground[sure.within(seen)], LEAST_EVIDENCE, hole)
    made = opened(output, store)
    made.array("foreground", writable=True)[part.box] = closed[part.within(sure)]
    if evidence.interior is not None:
        made.array("interior", writable=True)[part.box] = evidence.interior[part.within(seen)]
    made.finish_part(part.name)


# ------------------------------------------------------------------------------------------- classical method


@task(name="threshold", task_run_name="threshold", timeout_seconds=4 * HOUR, **RESUMABLE)
def choose_threshold(*, working: StageRef, store: StoreAddress) -> StageRef:
    """Find the grey level that parts cells from resin: ``threshold.json``."""
    output = stage_output(store, "threshold", {"working": working.key}, {}, 1)
    if not output.complete:
        image = opened(working, store).array("image")
        found = find_threshold(_reader(image), volume_shape(image), _SECTIONS_AT_ONCE)
        output.write_json("threshold.json", {"level": found.level, "bright": found.bright})
        output.commit()
    return output.reference


@task(name="evidence", task_run_name="evidence-{part.name}", timeout_seconds=4 * HOUR, **RESUMABLE)
def apply_threshold(
    *,
    part: Block,
    output: StageRef,
    working: StageRef,
    threshold: StageRef,
    config: ForegroundConfig,
    store: StoreAddress,
) -> None:
    """Evidence of a slab of whole sections by the threshold."""
    image = opened(working, store).array("image")
    chosen = Threshold(**opened(threshold, store).read_json("threshold.json"))
    found = [
        threshold_slab(
            _reader(image),
            part.shape,
            start,
            min(start + _SECTIONS_AT_ONCE, part.stop[0]),
            chosen,
            config.cell_diameter_px,
        )
        for start in range(part.start[0], part.stop[0], _SECTIONS_AT_ONCE)
    ]
    made = opened(output, store)
    made.array("foreground", writable=True)[part.box] = np.concatenate(found)
    made.finish_part(part.name)


def _reader(image: zarr.Array) -> Read:
    return lambda start, stop: np.asarray(image[start:stop])


# ---------------------------------------------------------------------------------------------------- evidence


def evidence_output(inputs: StageRef, shape: Grid, config: ForegroundConfig, store: StoreAddress) -> StageOutput:
    """Where the evidence stands: ``foreground`` (0 to 255) and, where the method gives it, ``interior`` (nm)."""
    output = stage_output(store, "foreground", {inputs.stage: inputs.key}, config, 3)
    if not output.complete:
        output.create_array("foreground", shape, np.uint8, WORKING_CHUNKS)
        if config.method == "sam":
            output.create_array("interior", shape, np.float32, WORKING_CHUNKS)
    return output
