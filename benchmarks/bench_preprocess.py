"""Preprocessing kernels against SciPy, scikit-image and OpenCV, side by side in one run.

    python benchmarks/bench_preprocess.py --shape 64 256 256 --runs 3

Prints a Markdown table: median time of both, their ratio, and how far the results agree. Times depend on the machine
and on what else runs there; the ratio within one run much less so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numba
import numpy as np
from scipy import ndimage
from skimage.restoration import denoise_bilateral

from cmseg_core.preprocess.bilateral import bilateral_exact, bilateral_sections
from cmseg_core.preprocess.intensity import to_uint8
from cmseg_core.preprocess.median import median_3x3x3, median_sections, mode_3x3x3
from cmseg_core.preprocess.resample import resize

Kernel = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Pair:
    """One kernel and its peer; `reference` gives the result to agree with where it is not the peer's."""

    name: str
    peer_name: str
    ours: Kernel
    peer: Kernel
    reference: Kernel | None = None


def synthetic(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Noisy blobs in 8 bit, and six classes of them."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape).astype(np.float32), 4)
    smooth /= smooth.std()
    image = np.clip(128 + 40 * smooth + rng.normal(0, 15, shape), 0, 255).astype(np.uint8)
    labels = np.digitize(smooth, [-1.0, -0.3, 0.3, 1.0, 1.8]).astype(np.uint8)
    return image, labels


def mode_by_votes(labels: np.ndarray) -> np.ndarray:
    """Majority filter from one box filter a class; ties go to the smallest id, not to the own class."""
    votes = [
        ndimage.uniform_filter((labels == c).astype(np.float32), 3, mode="nearest") for c in range(labels.max() + 1)
    ]
    return np.argmax(np.round(np.stack(votes) * 27), axis=0).astype(np.uint8)


def pairs(shape: tuple[int, int, int]) -> list[Pair]:
    """Every comparison at one size."""
    image, labels = synthetic(shape)
    wide = image.astype(np.uint16) * 200
    cube = (max(shape),) * 3
    factors = [m / n for m, n in zip(cube, shape, strict=True)]
    few = image[:4]

    def zoom(order: int) -> np.ndarray:
        return ndimage.zoom(image, factors, order=order, mode="nearest", grid_mode=True)

    def each(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.stack([function(section) for section in few])

    def skimage_bilateral(section: np.ndarray) -> np.ndarray:
        out = denoise_bilateral(section, win_size=11, sigma_color=30 / 255, sigma_spatial=1.5, mode="edge")
        return np.round(out * 255).astype(np.uint8)

    def window() -> np.ndarray:
        return np.floor(np.clip((wide - 5000.0) * (255 / 40000), 0, 255) + 0.5).astype(np.uint8)

    def taps() -> np.ndarray:
        return bilateral_sections(few, 1.5, 30)

    def exact() -> np.ndarray:
        return bilateral_exact(few, 1.5, 30)

    def scipy_median(volume: np.ndarray, size: int | tuple[int, ...]) -> np.ndarray:
        return ndimage.median_filter(volume, size, mode="nearest")

    return [
        Pair("median 3x3x3, uint8", "scipy", lambda: median_3x3x3(image), lambda: scipy_median(image, 3)),
        Pair("median 3x3x3, uint16", "scipy", lambda: median_3x3x3(wide), lambda: scipy_median(wide, 3)),
        Pair("median 3x3 of sections", "scipy", lambda: median_sections(image), lambda: scipy_median(image, (1, 3, 3))),
        Pair("majority 3x3x3, 6 classes", "scipy boxes", lambda: mode_3x3x3(labels), lambda: mode_by_votes(labels)),
        Pair("bilateral, 4 sections", "skimage", taps, lambda: each(skimage_bilateral), exact),
        Pair("bilateral, 4 sections", "cv2", taps, lambda: each(lambda s: cv2.bilateralFilter(s, 11, 30, 1.5)), exact),
        Pair("bilateral, 4 sections", "every tap, NumPy", taps, exact),
        Pair(f"nearest to {cube[0]}^3", "scipy", lambda: resize(image, cube, "nearest"), lambda: zoom(0)),
        Pair(f"linear to {cube[0]}^3", "scipy", lambda: resize(image, cube, "linear"), lambda: zoom(1)),
        Pair("window of uint16", "NumPy", lambda: to_uint8(wide, (5000, 45000)), window),
    ]  # fmt: skip


def milliseconds(kernel: Kernel, runs: int) -> float:
    """Median time of some runs."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        kernel()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 256, 256), metavar=("Z", "Y", "X"))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"shape {tuple(options.shape)}, median of {options.runs} runs, {numba.get_num_threads()} threads\n")
    print("| kernel | peer | peer ms | cmseg ms | ratio | agreement |")
    print("| --- | --- | --- | --- | --- | --- |")
    for pair in pairs(tuple(options.shape)):
        # The first call compiles, or loads what an earlier run compiled.
        found = pair.ours().astype(np.int64)
        difference = np.abs(found - (pair.reference or pair.peer)())
        agreement = "equal" if not difference.any() else f"max {difference.max()}, mean {difference.mean():.3f}"
        peer, ours = milliseconds(pair.peer, options.runs), milliseconds(pair.ours, options.runs)
        print(
            f"| {pair.name} | {pair.peer_name} | {peer:.1f} | {ours:.2f} | {peer / ours:.1f} | {agreement} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
