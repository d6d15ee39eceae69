"""Separation of cells, step by step, side by side with the peers that the steps could be built on.

Run ``python benchmarks/bench_instances.py [--edge 128] [--repeats 3]``: prints a Markdown table. The figure that
matters is the ratio, as both sides ran on the same data, on the same machine, in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cc3d
import edt
import fastremap
import numpy as np
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import relabel_sequential
from skimage.segmentation import watershed as skimage_watershed

from cmseg_core.instances.basins import find_markers, find_passes, flood, merge_basins
from cmseg_core.instances.watershed import separate_cells
from cmseg_core.schema import InstancesConfig, VoxelSize

VOXEL = VoxelSize(z=45, y=45, x=45)
DIAMETER_NM = 1600.0
H_NM = 60.0


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


def merged_markers(distance: np.ndarray, mask: np.ndarray) -> int:
    """Number of basins at least `H_NM` deep, by flooding all maxima and joining over passes."""
    markers, peaks = find_markers(distance, (1, 1, 1))
    passes = find_passes(distance, flood(distance, markers, mask))
    groups = merge_basins(peaks, passes, lambda height, lower, _: float(peaks.height[lower]) - height < H_NM)
    return len(np.unique(groups[1:]))


def steps(edge: int) -> list[tuple[str, str, str, Callable[[], object], Callable[[], object], Callable[..., str]]]:
    """Name, peer, ours, the two runs, and what to say of their agreement."""
    mask = crowd(edge)
    distance = edt.edt(mask, anisotropy=VOXEL.zyx)
    smoothed = (ndimage.gaussian_filter(distance, H_NM / 2 / VOXEL.z) * mask).astype(np.float32)
    markers, _ = find_markers(smoothed, (1, 1, 1))
    signed = markers.astype(np.int32)
    gapped = (signed * 3).astype(np.uint32)

    def same_share(one: np.ndarray, two: np.ndarray) -> str:
        return f"{float((one == two)[mask].mean()):.4f} of voxels"

    return [
        ("distance transform", "scipy", "edt", lambda: ndimage.distance_transform_edt(mask, VOXEL.zyx),
         lambda: edt.edt(mask, anisotropy=VOXEL.zyx), lambda a, b: f"{np.abs(a - b).max() / a.max():.0e} relative"),
        ("h-maxima", "skimage h_maxima", "basins and passes", lambda: ndimage.label(h_maxima(smoothed, H_NM))[1],
         lambda: merged_markers(smoothed, mask), lambda a, b: f"{b} of {a} markers"),
        ("watershed", "skimage", "bioimage-cpp", lambda: skimage_watershed(-smoothed, signed, mask=mask),
         lambda: flood(smoothed, markers, mask), same_share),
        ("components", "scipy label", "cc3d", lambda: ndimage.label(mask)[1],
         lambda: int(cc3d.connected_components(mask, connectivity=6).max()), lambda a, b: f"{b} of {a} components"),
        ("relabelling", "skimage", "fastremap", lambda: relabel_sequential(gapped)[0],
         lambda: fastremap.renumber(gapped, preserve_zero=True)[0],
         lambda a, b: f"{len(fastremap.unique(b))} of {len(fastremap.unique(a))} ids"),
        ("mask to cells", "scipy + skimage", "separate_cells", lambda: whole_by_peers(mask).max(),
         lambda: separate_cells(mask, VOXEL, InstancesConfig(), cell_diameter_nm=DIAMETER_NM).max(),
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
