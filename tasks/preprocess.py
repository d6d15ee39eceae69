"""From acquired samples to the denoised 8-bit image that every later stage looks at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from prefect import task

from cmseg_core.acquisition.source import ArraySections
from cmseg_core.preprocess.intensity import find_window, to_uint8
from cmseg_core.preprocess.median import median_slab
from cmseg_core.schema import PreprocessConfig
from cmseg_core.storage.stages import StageRef, slabs
from tasks.request import StoreAddress
from tasks.stage import HOUR, RESUMABLE, SLAB, opened, stage_output

REVISION = 1


@task(name="preprocess", task_run_name="preprocess", timeout_seconds=4 * HOUR, **RESUMABLE)
def preprocess(*, ingested: StageRef, config: PreprocessConfig, store: StoreAddress) -> StageRef:
    """Window and median-filter ``raw`` into ``image``, on the native grid."""
    settings = config.model_dump(include={"window_percentiles", "stretch_8bit", "median_size"})
    output = stage_output(store, "preprocess", {"ingest": ingested.key}, settings, REVISION)
    if not output.complete:
        raw = opened(ingested, store).array("raw")
        keeps = raw.dtype == np.uint8 and not config.stretch_8bit
        window = None if keeps else find_window(ArraySections(raw), *config.window_percentiles)

        def read(start: int, stop: int) -> np.ndarray:
            return to_uint8(np.asarray(raw[start:stop]), window)

        filtered = _filtered(read, config.median_size, raw.shape[0])
        image = output.create_array("image", raw.shape, np.uint8, depth=SLAB)
        for start, stop in slabs(raw.shape, SLAB):
            image[start:stop] = filtered(start, stop)
        output.commit({"window": window})
    return output.reference


def _filtered(read: Callable[[int, int], np.ndarray], size: int, depth: int) -> Callable[[int, int], np.ndarray]:
    if not size:
        return read
    return lambda start, stop: median_slab(read, start, stop, depth)
