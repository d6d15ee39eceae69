"""From a stack in any format to sections in the store, and the verdict on their quality."""

from __future__ import annotations

from prefect import task

from cmseg_core.acquisition.quality import assess
from cmseg_core.errors import InputError
from cmseg_core.schema import QualityConfig, VoxelSize
from cmseg_core.storage.stages import StageRef, slabs
from tasks.request import StoreAddress
from tasks.source import open_stack
from tasks.stage import HOUR, RESUMABLE, SLAB, stage_output

REVISION = 1


@task(name="ingest", task_run_name="ingest", timeout_seconds=4 * HOUR, **RESUMABLE)
def ingest(*, source: str, sha256: str, voxel_size: VoxelSize, quality: QualityConfig, store: StoreAddress) -> StageRef:
    """Copy the sections as they are to ``raw``, and judge them in ``qc.json``.

    Raises
    ------
    InputError
        Where the acquisition must not be processed further.
    """
    settings = {"quality": quality, "voxel_size": voxel_size}
    output = stage_output(store, "ingest", {"source": sha256}, settings, REVISION)
    if not output.complete:
        stack = open_stack(source, voxel_size)
        report = assess(stack, quality)
        if report.fatal is None:
            raw = output.create_array("raw", stack.shape, stack.dtype, depth=SLAB)
            for start, stop in slabs(stack.shape, SLAB):
                raw[start:stop] = stack.read(start, stop)
        output.write_json("qc.json", report)
        output.commit({"fatal": report.fatal})
    fatal = output.summary["fatal"]
    if fatal is not None:
        raise InputError(source, fatal, "acquire it again, or set other limits under `quality`")
    return output.reference
