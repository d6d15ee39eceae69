"""What fusing three directions gains over one, by rule of fusion, by filter, and with test-time flips.

    python -m benchmarks.bench_fusion 7201 7202 7203 7204 --voxel-size 30 20 20
    python -m benchmarks.bench_fusion 7205 7206 --voxel-size 60 15 15
    python -m benchmarks.bench_fusion 7201 7202 --cells 2 --flips 1 4 8

For every seed a field of five cells is simulated, a hard one where the seed is even. The true cells, or the first
``--cells`` of them, are labelled with the packaged model (or that of ``--model``), and the IoU of each class is pooled
over all cells: from the sections across each axis alone, and from all three by each rule of fusion. ``--against`` names
the way that all are compared with; the differences have a standard error, by drawing cells with replacement.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from cmseg_core.evaluation.bootstrap import pooled_iou, resampled_iou
from cmseg_core.evaluation.overlap import ClassCounts
from cmseg_core.evaluation.tables import format_table
from cmseg_core.schema import OrganellesConfig, PreprocessConfig, VoxelSize, Workspace
from flows.environment import prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cmseg_core.organelles.dataset import LabelledCell
    from cmseg_core.organelles.fusion import FusedProbabilities, Rule
    from cmseg_core.organelles.model import OrganelleModel

Way = tuple[int, str, str]
"""Flips, filter, and the directions or the rule by which they are fused."""

FILTERS: tuple[Literal["median", "majority", "none"], ...] = ("none", "median", "majority")


def main() -> None:
    """Simulate, label, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--voxel-size", type=float, nargs=3, default=(30, 20, 20), metavar=("Z", "Y", "X"))
    parser.add_argument("--cells", type=int, help="at most so many of each field")
    parser.add_argument("--flips", type=int, nargs="+", choices=(1, 4, 8), default=(1,))
    parser.add_argument("--against", nargs=2, default=("none", "mean"), metavar=("FILTER", "DIRECTIONS"))
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    prepare(Workspace())

    from cmseg_core.organelles.model import load_model
    from cmseg_core.tracking.registry import packaged_model

    model = load_model(options.model or packaged_model("unet"))
    voxel_size = VoxelSize(**dict(zip("zyx", options.voxel_size, strict=True)))
    tables: dict[Way, list[NDArray[np.int64]]] = {}
    seconds = dict.fromkeys(options.flips, 0.0)
    cells = [cell for seed in options.seeds for cell in simulated(seed, voxel_size)[: options.cells]]
    for cell in cells:
        for flips in options.flips:
            began = time.perf_counter()
            ways = fused_ways(cell, model, OrganellesConfig(flips=flips))
            seconds[flips] += time.perf_counter() - began
            for way, fused in ways.items():
                for filter_, table in scored(fused, cell, model).items():
                    tables.setdefault((flips, filter_, way), []).append(table)
        print(f"{cell.name} done", flush=True)
    names = [c.name for c in model.taxonomy.foreground]
    print(f"\n{len(cells)} cells, voxels {voxel_size.zyx} nm\n")
    report({way: np.stack(of_cells) for way, of_cells in tables.items()}, names, (options.flips[0], *options.against))
    for flips, total in seconds.items():
        print(f"flips {flips}: {total / len(cells):.1f} s a cell, the network and fusing")


def report(tables: dict[Way, NDArray[np.int64]], names: list[str], against: Way) -> None:
    """Print the IoU of every way, and how far each is from the one that all are compared with."""
    rows, differences = [], []
    drawn = resampled_iou(tables[against])[:, 1:]
    base = pooled_iou(tables[against].sum(axis=0))[1:]
    for way, of_cells in sorted(tables.items(), key=lambda one: (one[0][0], FILTERS.index(one[0][1]))):
        iou, moved = pooled_iou(of_cells.sum(axis=0))[1:], resampled_iou(of_cells)[:, 1:] - drawn
        rows.append((*way, *(float(v) for v in (*iou, np.nanmean(iou)))))
        gains = (*(iou - base), np.nanmean(iou) - np.nanmean(base))
        errors = (*np.nanstd(moved, axis=0), np.nanstd(np.nanmean(moved, axis=1)))
        differences.append((*way, *(f"{g:+.3f} ± {e:.3f}" for g, e in zip(gains, errors, strict=True))))
    head = ("flips", "filter", "directions", *names, "mean")
    print(f"IoU\n\n{format_table(head, rows)}\n\nagainst {against}\n\n{format_table(head, differences)}\n")


def simulated(seed: int, voxel_size: VoxelSize) -> list[LabelledCell]:
    """The true cells of a simulated field."""
    from cmseg_core.organelles.cutting import cut_cells
    from cmseg_core.phantom import draw_field
    from cmseg_core.preprocess.median import median_3x3x3

    field = draw_field(seed, cells=5, voxel_size=voxel_size, hard=seed % 2 == 0)
    image, ids, organelles = field.render(0, field.shape[0])
    return cut_cells(median_3x3x3(image), ids, organelles, voxel_size, field.stages, name=str(seed))


def fused_ways(cell: LabelledCell, model: OrganelleModel, config: OrganellesConfig) -> dict[str, FusedProbabilities]:
    """The probabilities of each direction alone, and of all by each rule; the network sees every section once."""
    from cmseg_core.organelles.dataset import cube_of
    from cmseg_core.organelles.fusion import AXES, FusedProbabilities, Rule, weights_of
    from cmseg_core.organelles.inference import section_probabilities

    cube, classes = cube_of(cell, model.section_size, PreprocessConfig()).image, len(model.taxonomy)
    ways: dict[str, tuple[Rule, tuple[int, ...]]] = {name: ("mean", (axis,)) for axis, name in enumerate(AXES)}
    ways |= {rule: (rule, (0, 1, 2)) for rule in get_args(Rule) if rule != "model" or model.fusion is not None}
    fused = {
        name: FusedProbabilities(cube.shape, classes, weights_of(rule, model.fusion, axes, classes))
        for name, (rule, axes) in ways.items()
    }
    for axis, start, _, probabilities in section_probabilities(cube, model, config):
        if probabilities is not None:
            for name, (_, axes) in ways.items():
                if axis in axes:
                    fused[name].add(axis, start, probabilities)
    return fused


def scored(fused: FusedProbabilities, cell: LabelledCell, model: OrganelleModel) -> dict[str, NDArray[np.int64]]:
    """Voxels of a cell by true and found class, under each filter."""
    from cmseg_core.organelles.inference import on_cell

    found = {f: on_cell(fused, cell, model, OrganellesConfig(filter=f), PreprocessConfig()) for f in FILTERS}
    return {f: ClassCounts(model.taxonomy).add(cell.labels, one.labels).table for f, one in found.items()}


if __name__ == "__main__":
    main()
