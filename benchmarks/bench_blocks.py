"""Memory and time of telling cells apart in blocks, for three sizes of a volume, beside the whole volume at once.

Run ``python -m benchmarks.bench_blocks [--sizes 128x512x512 ...] [--memory 4]``: prints a Markdown table. Each size is
run in a process of its own, from the denoised image to the cells on the native grid, with the classical method, or with
``--interior`` from evidence with an interior map as SAM gives it. Beside the smallest: SciPy and scikit-image on the
whole volume, in a process of its own too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cmseg_core.schema import ForegroundConfig, InstancesConfig, PipelineConfig, VoxelSize, Workspace

SIZES = ("128x512x512", "256x512x1024", "512x1024x1024")
CONFIG = ForegroundConfig(method="threshold")
PIXEL_NM = CONFIG.cell_diameter_nm / CONFIG.cell_diameter_px
VOXEL = VoxelSize(z=PIXEL_NM, y=PIXEL_NM, x=PIXEL_NM)
PITCH, RADIUS = 44, 22.6
"""Balls that touch, in voxels."""


def slab(shape: tuple[int, int, int], start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and depth in nm inside the balls, of some sections."""
    z, y, x = np.ogrid[start:stop, : shape[1], : shape[2]]
    square = sum((((axis % PITCH) - PITCH / 2) ** 2).astype(np.float32) for axis in (z, y, x))
    depth = np.maximum(RADIUS - np.sqrt(square), 0) * np.float32(PIXEL_NM)
    noise = np.random.default_rng(start).integers(0, 8, square.shape, dtype=np.uint8)
    # Cells have texture, which tells them from the resin.
    return np.where(depth > 0, 80 + 5 * noise, 160 + noise).astype(np.uint8), depth


def in_blocks(shape: tuple[int, int, int], memory: float, interior: bool, folder: Path) -> dict[str, Any]:
    """Run the pipeline's tasks in this process."""
    from flows.environment import prepare

    prepare(Workspace(workspace=folder))
    from prefect import flow
    from prefect.task_runners import ThreadPoolTaskRunner

    from cmseg_core.instances.blocks import blocks
    from cmseg_core.storage.stages import slabs
    from flows import separation
    from tasks.foreground import evidence_output
    from tasks.memory import plan_blocks
    from tasks.request import AcquisitionRequest, StoreAddress
    from tasks.stage import opened, stage_output

    store = StoreAddress(uri=str(folder / "store"))
    config = CONFIG.model_copy(update={"method": "sam"}) if interior else CONFIG
    image = stage_output(store, "preprocess", {}, {}, 1)
    array = image.create_array("image", shape, np.uint8, depth=64)
    evidence = evidence_output(image.reference, shape, config, store)
    for start, stop in slabs(shape, 64):
        grey, depth = slab(shape, start, stop)
        array[start:stop] = grey
        if interior:
            evidence.array("foreground", writable=True)[start:stop] = (depth > 0).view(np.uint8) * 255
            evidence.array("interior", writable=True)[start:stop] = depth
    image.commit()
    if interior:
        evidence.commit()
        separation._evidence = lambda *_: evidence.reference  # noqa: SLF001  # what SAM would have taken hours for
    request = AcquisitionRequest(
        name="bench",
        source="bench",
        config=PipelineConfig(foreground=config),
        store=store.uri,
        unet="",
        tracking_uri="",
        workspace=folder,
        max_memory_gb=memory,
    )
    edge = plan_blocks(request, shape, np.dtype(np.uint8), VOXEL)
    whole = flow(name="separate", validate_parameters=False, task_runner=ThreadPoolTaskRunner(max_workers=1))(
        separation.find_and_separate
    )
    began = time.perf_counter()
    _, separated = whole(
        preprocessed=image.reference,
        shape=shape,
        voxel_size=VOXEL,
        config=config,
        instances=InstancesConfig(),
        sam=None,
        edge=edge,
        store=store,
    )
    seconds = time.perf_counter() - began
    cells = opened(separated, store).summary["cells"]
    return {"cells": cells, "seconds": seconds, "blocks": f"{len(blocks(shape, edge))} of {edge}"}


def at_once(shape: tuple[int, int, int]) -> dict[str, Any]:
    """SciPy and scikit-image on the whole volume."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu
    from skimage.morphology import h_maxima
    from skimage.segmentation import watershed

    image, _ = slab(shape, 0, shape[0])
    began = time.perf_counter()
    smooth = ndimage.gaussian_filter(image, 1.5, output=np.float32)
    mask = smooth < threshold_otsu(smooth)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 30 / PIXEL_NM)
    markers, count = ndimage.label(h_maxima(distance, 60 / PIXEL_NM) * mask)
    watershed(-distance, markers, mask=mask)
    return {"cells": int(count), "seconds": time.perf_counter() - began, "blocks": "1"}


def main() -> None:
    """Print the table, or run one of its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--memory", type=float, default=4.0)
    parser.add_argument("--interior", action="store_true")
    parser.add_argument("--row", choices=["blocks", "whole"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    if arguments.row:
        shape = tuple(int(n) for n in arguments.sizes[0].split("x"))
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            blocks = arguments.row == "blocks"
            row = in_blocks(shape, arguments.memory, arguments.interior, Path(folder)) if blocks else at_once(shape)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(row | {"peak": peak}))
        return
    print("| volume | way | blocks | cells | s | s per 100 million voxels | peak memory (GB) |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for number, size in enumerate(arguments.sizes):
        for way in ("blocks", "whole") if number == 0 and not arguments.interior else ("blocks",):
            options = ["--memory", str(arguments.memory), "--folder", str(arguments.folder)]
            options += ["--interior"] if arguments.interior else []
            command = [sys.executable, "-m", "benchmarks.bench_blocks", "--row", way, "--sizes", size, *options]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            voxels = np.prod([int(n) for n in size.split("x")])
            title = "cmseg" if way == "blocks" else "SciPy and scikit-image"
            print(
                f"| {size} | {title} | {row['blocks']} | {row['cells']} | {row['seconds']:.0f} | "
                f"{row['seconds'] / voxels * 1e8:.0f} | {row['peak']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
