"""Masks of sections: cmseg's generator beside segment_anything's SamAutomaticMaskGenerator, in one run.

    python -m benchmarks.bench_sam time [--sections 13] [--threads 2]
    python -m benchmarks.bench_sam agree SEEDS [--sections 12] [--points 32] [--model FILE]

``time`` takes the official vit_b architecture with random weights and a simulated section of 1024 x 1024 pixels, which
the official generator is asked about with its defaults, 32 x 32 points. cmseg is asked about the same section and the
ones that follow it (256 x 256 on its working grid, which the model sees magnified to 1024 x 1024 as well), from one key
section to the next. Random weights predict arbitrary qualities; so both are timed with thresholds that no mask passes,
and with thresholds that every mask passes. A third row is for a model with a head, as `cmseg train` makes it, which is
asked nothing.

``agree`` takes the packaged checkpoint, or another, and sections of simulated fields of their own looks, easy and hard,
and compares the foreground (IoU) of the official generator with that of cmseg's, from a grid, propagated, and read by
the head, and each with the truth. Both generators' masks pass the same rules.

Both run on the GPU where there is one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cmseg_core.foreground.evidence import flatten
from cmseg_core.foreground.generator import MaskGenerator
from cmseg_core.foreground.masks import Masks, distinct_boxes
from cmseg_core.foreground.reading import HeadReader
from cmseg_core.foreground.rules import cell_masks
from cmseg_core.foreground.sam import SamModel, as_colours, load_sam, new_head
from cmseg_core.foreground.torchvision_ops import declare_missing
from cmseg_core.foreground.walk import Walk
from cmseg_core.phantom import draw_field
from cmseg_core.schema import ForegroundConfig, VoxelSize

WORKING = VoxelSize(z=36, y=36, x=36)


def official(sam: SamModel, points: int, config: ForegroundConfig) -> Any:
    """The official generator; what it lacks beside a CPU build of PyTorch is given to it."""
    from segment_anything import SamAutomaticMaskGenerator, automatic_mask_generator

    def nms(boxes: torch.Tensor, scores: torch.Tensor, _categories: Any, iou_threshold: float) -> torch.Tensor:
        corners = boxes.cpu().numpy()
        sized = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return torch.from_numpy(distinct_boxes(sized, scores.cpu().numpy(), iou_threshold))

    if sam.device.type == "cpu":
        automatic_mask_generator.batched_nms = nms
    return SamAutomaticMaskGenerator(
        sam.network,
        points_per_side=points,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_score_thresh,
        box_nms_thresh=config.box_nms_thresh,
    )


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare_times(sections: int, threads: int) -> None:
    torch.set_num_threads(threads)
    declare_missing()
    from segment_anything import build_sam_vit_b

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build_sam_vit_b().to(device).eval().requires_grad_(False)
    head = new_head(network).to(device).eval().requires_grad_(False)
    sam = SamModel(network, "vit_b", "grey", "vit_b", False, head=head)
    field = draw_field(7300, cells=24, voxel_size=WORKING, shape=(sections + 1, 256, 256))
    volume, _, _ = field.render(0, sections + 1)
    large = cv2.resize(as_colours(volume, 0, "grey"), (1024, 1024), interpolation=cv2.INTER_LINEAR)
    print(f"vit_b, random weights, propagated, {threads} threads, {sections} sections, every sixth a key section")
    print("| masks that pass | official, s a section | cmseg, s a section | times faster |\n| --- | --- | --- | --- |")
    for name, threshold in (("none", 1.0), ("all", 0.0)):
        thresholds = {"pred_iou_thresh": threshold, "stability_score_thresh": threshold}
        config = ForegroundConfig(prompts="propagated", **thresholds)
        generator = official(sam, 32, config)
        if device.type == "cuda":  # its first kernels are chosen and loaded
            generator.generate(large)
            list(Walk(MaskGenerator(sam, config), volume[:-1]).masks())
        theirs = timed(partial(generator.generate, large))
        walk = Walk(MaskGenerator(sam, config), volume[:-1])
        ours = timed(lambda walk=walk: list(walk.masks())) / sections
        print(f"| {name} | {theirs:.2f} | {ours:.3f} | {theirs / ours:.0f} |", flush=True)
        if name == "none":
            reader = HeadReader(sam)
            pictures = [as_colours(volume, n, "grey") for n in range(sections)]
            reader.read(pictures[:1])
            read = timed(partial(reader.read, pictures)) / sections
            print(f"| none, read by a head | {theirs:.2f} | {read:.3f} | {theirs / read:.0f} |", flush=True)


def compare_masks(seeds: list[int], sections: int, points: int, model: Path | None) -> None:
    if model is None:
        from cmseg_core.tracking.registry import packaged_model

        model = packaged_model("sam")
    sam, config = load_sam(model), ForegroundConfig()
    exact = MaskGenerator(sam, config, torch.float32)
    print("| field | grid, float32 | grid | propagated | head | official, truth | grid, truth | propagated, truth | "
          "head, truth | s a section, official, grid, propagated, head |\n|" + " --- |" * 10)  # fmt: skip
    every = []
    for seed in seeds:
        for hard in (False, True):
            # As large as the model's input: the official generator magnifies what is smaller.
            size = sam.image_size
            field = draw_field(seed, cells=24, voxel_size=WORKING, hard=hard, shape=(sections + 30, size, size))
            volume, cells, _ = field.render(0, field.shape[0])
            first = (len(volume) - sections) // 2
            chosen = range(first, first + sections)
            slab, truth = volume[first - 1 : first + sections + 1], [cells[n] > 0 for n in chosen]
            ways: dict[str, Any] = {}
            spent = {}
            generator = official(sam, points, config)
            began = time.perf_counter()
            ways["official"] = [_official_cells(generator, as_colours(volume, n, sam.context), config) for n in chosen]
            spent["official"] = (time.perf_counter() - began) / sections
            for name, one, how in (
                ("exact", exact, "grid"),
                ("grid", MaskGenerator(sam, config), "grid"),
                ("propagated", MaskGenerator(sam, config), "propagated"),
            ):
                one.config = config.model_copy(update={"prompts": how, "points_per_side": points})
                began = time.perf_counter()
                masks = list(Walk(one, slab).masks(1, sections + 1))
                spent[name] = (time.perf_counter() - began) / sections
                ways[name] = [flatten(found)[0] >= 128 for found in masks]
            began = time.perf_counter()
            read = HeadReader(sam).read([as_colours(slab, n + 1, sam.context) for n in range(sections)])
            spent["head"] = (time.perf_counter() - began) / sections
            ways["head"] = [probability >= 128 for probability, _ in read]
            row = [_iou(ways["official"], ways[name]) for name in ("exact", "grid", "propagated", "head")]
            row += [_iou(ways[name], truth) for name in ("official", "grid", "propagated", "head")]
            every.append(row)
            seconds = ", ".join(f"{spent[name]:.2f}" for name in ("official", "grid", "propagated", "head"))
            figures = " | ".join(f"{value:.3f}" for value in row)
            print(f"| {seed}{', hard' if hard else ''} | {figures} | {seconds} |", flush=True)
    print("| median | " + " | ".join(f"{value:.3f}" for value in np.median(every, axis=0)) + " | |")


def _official_cells(generator: Any, picture: np.ndarray, config: ForegroundConfig) -> np.ndarray:
    """Foreground of the official generator's masks, by the rules that cmseg's masks pass too."""
    found = generator.generate(picture)
    if not found:
        return np.zeros(picture.shape[:2], bool)
    logits = np.stack([np.where(one["segmentation"], 5.0, -5.0) for one in found]).astype(np.float32)
    masks = Masks.of(logits, np.array([one["predicted_iou"] for one in found], np.float32))
    return cell_masks(masks, config).covered()


def _iou(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    first, second = np.stack(a), np.stack(b)
    return float((first & second).sum() / max((first | second).sum(), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("time")
    one.add_argument("--sections", type=int, default=13)
    one.add_argument("--threads", type=int, default=2)
    one = commands.add_parser("agree")
    one.add_argument("seeds", type=int, nargs="+")
    one.add_argument("--sections", type=int, default=12)
    one.add_argument("--points", type=int, default=32)
    one.add_argument("--model", type=Path)
    given = parser.parse_args()
    if given.command == "time":
        compare_times(given.sections, given.threads)
    else:
        compare_masks(given.seeds, given.sections, given.points, given.model)


if __name__ == "__main__":
    main()
