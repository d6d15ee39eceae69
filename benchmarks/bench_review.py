"""How well the confidence of a model is calibrated, and whether the review score finds the cells that went wrong.

    python -m benchmarks.bench_review 7201 7202 7203 7204 --cells 5

For every seed an easy and a hard field is simulated, each with a look of its own; their true cells are labelled anew
with the packaged model (or that of ``--model``) and scored. Prints the expected calibration error before and after
temperature scaling, the area under the risk-coverage curve beside that of a random order, and the share of the worst
fifth of the cells among the fifth that the review score puts first, where chance finds a fifth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from cmseg_core.schema import PipelineConfig, VoxelSize, Workspace
from flows.environment import prepare

VOXEL_SIZE = VoxelSize(z=30, y=20, x=20)


def main() -> None:
    """Simulate, label, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--cells", type=int, default=5, help="in each field")
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    prepare(Workspace())

    from cmseg_core.evaluation.trials import summarise
    from cmseg_core.organelles.cutting import cut_cells
    from cmseg_core.organelles.model import load_model
    from cmseg_core.phantom import draw_field
    from cmseg_core.preprocess.median import median_3x3x3
    from cmseg_core.tracking.registry import packaged_model
    from flows.console import Console
    from flows.evaluate import score_cells

    model, pipeline = load_model(options.model or packaged_model("unet")), PipelineConfig()
    records = []
    for seed in options.seeds:
        for hard in (False, True):
            field = draw_field(seed, cells=options.cells, voxel_size=VOXEL_SIZE, hard=hard)
            image, ids, organelles = field.render(0, field.shape[0])
            name = f"{seed} {'hard' if hard else 'easy'}"
            cells = cut_cells(median_3x3x3(image), ids, organelles, VOXEL_SIZE, field.stages, name=name)
            scored = score_cells(cells, model, pipeline, Console(False))
            iou = [record.mean_iou for record in scored]
            print(f"{name}: {len(scored)} cells, mean IoU {np.mean(iou):.3f}, worst {min(iou):.3f}", flush=True)
            records += scored
    scores = summarise(records, model.taxonomy)
    before, after = (scores["calibration"][f"error_{when}"] for when in ("before", "after"))
    review = scores["review"]
    print(f"\n{len(records)} cells, mean IoU {scores['mean_iou']:.3f} pooled")
    print(f"expected calibration error: {before:.4f} before temperature scaling, {after:.4f} after it")
    print(f"area under the risk-coverage curve: {review['aurc']:.4f}, in random order {review['aurc_random']:.4f}")
    print(f"worst fifth found in the first fifth: {review['worst_fifth_found']:.2f}, by chance 0.20")


if __name__ == "__main__":
    main()
