"""Separation of cells, step by step, side by side with the peers that the steps could be built on.

Run ``python benchmarks/bench_instances.py [--edge 128] [--repeats 3]``: prints a Markdown table. The figure that
matters is the ratio, as both sides ran on the same data, on the same machine, in turn.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import cc3d
import numpy as np
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import relabel_sequential
from skimage.segmentation import watershed as skimage_watershed

from cmseg_core.instances.basins import find_basins
from cmseg_core.instances.landscape import Landscape, distance_map
from cmseg_core.instances.merging import collect, merge
from cmseg_core.instances.watershed import separate_cells
from cmseg_core.schema import InstancesConfig, VoxelSize

VOXEL = VoxelSize(z=45, y=45, x=45)
DIAMETER_NM = 1600.0
H_NM = 60.0
THREADS = len(os.sched_getaffinity(0))


def crowd(edge: int) -> np.ndarray:
    """Balls in a cubic lattice that touch, as a mask of shape (edge, edge, edge)."""
    pitch, radius = 34, 17.8
    axes = np.ogrid[:edge, :edge, :edge]
    return sum(((a % pitch) - pitch / 2) ** 2 for a in axes) <= radius**2


def best_time(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def whole_by_peers(mask: np.ndarray) -> np.ndarray:
    """Mask to cells with SciPy and scikit-image alone."""
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask, VOXEL.zyx), H_NM / 2 / VOXEL.z)
    markers, _ = ndimage.label(h_maxima(distance, H_NM) * mask)
    return skimage_watershed(-distance, markers, mask=mask)


def joined_peaks(distance: np.ndarray, mask: np.ndarray) -> int:
    """Number of basins at least `H_NM` deep."""
    basins = collect([find_basins(Landscape(distance, distance), mask)[1]])
    return len(np.unique(merge(basins, mask.shape, VOXEL, h_nm=H_NM, neck_ratio=1.0, nearest_nm=0)))


def peaks_of(distance: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A marker at every peak that has a basin, for the peer's flood."""
    _, table = find_basins(Landscape(distance, distance), mask)
    markers = np.zeros(mask.shape, np.int32)
    markers.ravel()[table.peak] = np.arange(1, len(table.peak) + 1)
    return markers


def steps(edge: int) -> list[tuple[str, str, str, Callable[[], object], Callable[[], object], Callable[..., str]]]:
    """Name, peer, ours, the two runs, and what to say of their agreement."""
    mask = crowd(edge)
    distance = distance_map(mask, VOXEL, DIAMETER_NM, THREADS)
    smoothed = (ndimage.gaussian_filter(distance, H_NM / 2 / VOXEL.z) * mask).astype(np.float32)
    markers = peaks_of(smoothed, mask)
    gapped = separate_cells(mask, VOXEL, InstancesConfig(), cell_diameter_nm=DIAMETER_NM) * np.uint32(3)
    in_order = np.arange(int(gapped.max()) + 1, dtype=np.uint32) // 3

    def same_share(one: np.ndarray, two: np.ndarray) -> str:
        return f"{float((one == two)[mask].mean()):.4f} of voxels"

    return [
        ("distance transform", "scipy", "edt", lambda: ndimage.distance_transform_edt(mask, VOXEL.zyx),
         lambda: distance_map(mask, VOXEL, DIAMETER_NM, THREADS),
         lambda a, b: f"{np.abs(a - b).max() / a.max():.0e} relative"),
        ("h-maxima", "skimage h_maxima", "basins and passes", lambda: ndimage.label(h_maxima(smoothed, H_NM))[1],
         lambda: joined_peaks(smoothed, mask), lambda a, b: f"{b} of {a} peaks"),
        ("watershed", "skimage", "steepest ascent", lambda: skimage_watershed(-smoothed, markers, mask=mask),
         lambda: find_basins(Landscape(smoothed, smoothed), mask)[0], same_share),
        ("components", "scipy label", "cc3d", lambda: ndimage.label(mask)[1],
         lambda: int(cc3d.connected_components(mask, connectivity=6).max()), lambda a, b: f"{b} of {a} components"),
        ("relabelling", "skimage relabel_sequential", "a table", lambda: relabel_sequential(gapped)[0],
         lambda: in_order[gapped], same_share),
        ("mask to cells", "scipy + skimage", "separate_cells", lambda: whole_by_peers(mask).max(),
         lambda: separate_cells(
             mask, VOXEL, InstancesConfig(), cell_diameter_nm=DIAMETER_NM, threads=THREADS).max(),
         lambda a, b: f"{b} of {a} cells"),
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"| step, {arguments.edge}^3 | peer | peer (ms) | ours | ours (ms) | ratio | agreement |")
    print("| --- | --- | ---: | --- | ---: | ---: | --- |")
    for name, peer, ours, run_peer, run_ours, agreement in steps(arguments.edge):
        said = agreement(run_peer(), run_ours())
        slow, fast = best_time(run_peer, arguments.repeats), best_time(run_ours, arguments.repeats)
        print(f"| {name} | {peer} | {slow * 1e3:.1f} | {ours} | {fast * 1e3:.1f} | {slow / fast:.1f} | {said} |")


if __name__ == "__main__":
    main()
