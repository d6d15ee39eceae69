"""Grey levels and noise spectrum of simulated acquisitions beside real FIB-SEM.

Real: EPFL hippocampus (5 nm) and FlyEM medulla (10 nm), from the folder that CMSEG_TEST_DATA names. Simulated: eight
seeds at each of the two voxel sizes. Writes docs/figures/phantom-vs-real.png and prints the figures.

    python benchmarks/compare_phantom.py
"""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tifffile

from cmseg_core.phantom import draw_field
from cmseg_core.schema import VoxelSize

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CMSEG_TEST_DATA", ROOT.parent / "shared" / "data"))
REAL = {"EPFL hippocampus, 5 nm": ("epfl_6class/block_z000-019_raw.tif", 5), "FlyEM medulla, 10 nm": (
    "flyem_medulla/ts1_raw.tif", 10)}  # fmt: skip
EDGE = 240


def spectrum(section: np.ndarray) -> np.ndarray:
    """Radially averaged power of the unit-variance section, at 0 to 0.5 cycles a pixel."""
    section = section.astype(float) - section.mean()
    section /= section.std() + 1e-9
    window = np.hanning(section.shape[0])[:, None] * np.hanning(section.shape[1])
    power = np.abs(np.fft.fft2(section * window)) ** 2 / (window**2).sum()
    fy, fx = (np.fft.fftfreq(n) for n in section.shape)
    radius = np.hypot(fy[:, None], fx)
    bins = np.minimum((radius / 0.5 * 40).astype(int), 40)
    return np.bincount(bins.ravel(), power.ravel(), 41)[:40] / np.bincount(bins.ravel(), minlength=41)[:40]


def noise_share(section: np.ndarray) -> float:
    """Share of the variance above 0.35 cycles a pixel, where structure has faded."""
    curve, weight = spectrum(section), np.arange(40) + 0.5
    return float((curve * weight)[28:].sum() / (curve * weight).sum())


def main() -> None:
    """Draw the figure and print a table."""
    figure, axes = plt.subplots(2, 4, figsize=(16, 7.6), constrained_layout=True)
    print(
        "| stack | mean grey | SD | 1 % .. 99 % | share of variance above .35 cycles/px |",
        "| --- | --- | --- | --- | --- |",
        sep="\n",
    )
    for row, (name, (path, nm)) in zip(axes, REAL.items(), strict=True):
        real = tifffile.imread(DATA / path)[10, :EDGE, :EDGE]
        simulated = []
        for seed in range(8):
            field = draw_field(seed, cells=4, shape=(1, EDGE, EDGE), voxel_size=VoxelSize(z=nm, y=nm, x=nm))
            simulated.append(field.render(0, 1)[0][0])
        for title, section in [(name, real), *((f"simulated, seed {s}", i) for s, i in enumerate(simulated))]:
            low, high = np.percentile(section, (1, 99))
            figures = (
                f"{section.mean():.0f} | {section.std():.0f} | {low:.0f} .. {high:.0f} | {noise_share(section):.3f}"
            )
            print(f"| {title} | {figures} |")
        row[0].imshow(real, cmap="gray", vmin=0, vmax=255)
        row[0].set_title(name)
        row[1].imshow(simulated[0], cmap="gray", vmin=0, vmax=255)
        row[1].set_title(f"simulated, {nm} nm, seed 0")
        for section in simulated:
            row[2].hist(
                section.ravel(), bins=64, range=(0, 255), histtype="step", color="tab:blue", alpha=0.4, density=True
            )
            row[3].semilogy(np.arange(40) / 80, spectrum(section), color="tab:blue", alpha=0.4)
        row[2].hist(real.ravel(), bins=64, range=(0, 255), histtype="step", color="black", lw=2, density=True)
        row[2].set_title("grey levels: real (black), simulated (blue)")
        row[3].semilogy(np.arange(40) / 80, spectrum(real), color="black", lw=2)
        row[3].set_title("power spectrum, unit variance")
        row[3].set_xlabel("cycles a pixel")
        for panel in row[:2]:
            panel.axis("off")
    target = ROOT / "docs" / "figures" / "phantom-vs-real.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=70)


if __name__ == "__main__":
    main()
