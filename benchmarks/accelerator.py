"""Trainings of an accelerator's size, from the core alone: Keras on JAX, Segment Anything on PyTorch.

    python -m benchmarks.accelerator steps [--width 64 --section 256 --batch 16 --seconds 10]
    python -m benchmarks.accelerator fields FOLDER --kind organelles|cells|six --first 14000 --count 2000
    python -m benchmarks.accelerator case FOLDER NUMBER PRESET OUT.pickle [--config JSON]
    python -m benchmarks.accelerator unet FOLDER VALIDATION OUT.keras --minutes 8 [--config JSON]
    python -m benchmarks.accelerator sam FOLDER VALIDATION OUT.pt --minutes 8 [--config JSON] [--initial FILE.pt]
    python -m benchmarks.accelerator tables FOLDER

``steps`` times the training step of the organelle network in bfloat16 and in float32. ``fields`` draws simulated fields
and keeps what a network learns from. ``case`` trains and scores one case of the six (see six_cases.py), ``tables``
joins the cases PRESET-NUMBER.pickle of a folder into the scores and the tables of six_cases.py. ``unet`` and ``sam`` go
on from the packaged models. Where neither Prefect nor MLflow nor TensorFlow is installed all but ``tables`` runs all
the same, with ``KERAS_BACKEND=jax``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cmseg_core.phantom.field import Field

VOXELS = ((30, 20, 20), (20, 20, 20), (25, 16, 16), (40, 24, 24))
DEFECTS = ((), (), ("noise",), ("curtaining",), ("drift",), ("charging",))
WORKING_NM = 36.0
CROWD_VOXELS = ((30, 20, 20), (25, 25, 25), (40, 24, 24), (60, 24, 24))
DIVIDING = (0.1, 0.15, 0.25, 0.25, 0.25)
"""Shares of the stages where most cells divide."""
PACKAGED_SAM = Path(__file__).parents[1] / "cmseg_core/foreground/models/sam-starter.pt"
CUBE = 96
"""Section size of the packaged U-Net."""


def draw(folder: Path, kind: str, number: int, first: int) -> None:
    """Draw field `number` after `first`, as train_starters.sh does it, and keep what a network learns from."""
    from benchmarks.six_cases import FIRST_SEED, STAGES_OF_FIELDS, VOXEL_SIZE
    from cmseg_core.foreground.training import LabelledField
    from cmseg_core.organelles.cutting import cut_cells
    from cmseg_core.organelles.dataset import LabelledCell, cube_of
    from cmseg_core.phantom import draw_field
    from cmseg_core.preprocess.median import median_3x3x3
    from cmseg_core.preprocess.resample import resize, working_shape
    from cmseg_core.schema import PreprocessConfig, VoxelSize

    seed, defects = first + number, DEFECTS[number // 2 % len(DEFECTS)]
    if kind == "six":
        seed, counts = FIRST_SEED + number, STAGES_OF_FIELDS[number]
        stages: Any = [stage for stage, count in enumerate(counts, 1) for _ in range(count)]
        hard = number == len(STAGES_OF_FIELDS) - 1
        field = draw_field(seed, cells=len(stages), voxel_size=VOXEL_SIZE, stages=stages, hard=hard)
    elif kind == "organelles":
        z, y, x = VOXELS[number % len(VOXELS)]
        size = VoxelSize(z=z, y=y, x=x)
        field = draw_field(seed, cells=5, voxel_size=size, hard=number % 3 == 2, defects=defects)
    else:
        field = crowd(seed, number, defects)
    image, cells, organelles = field.render(0, field.shape[0])
    image = median_3x3x3(image)
    if kind == "cells":
        shape = working_shape(image.shape, field.voxel_size, WORKING_NM)
        interpolation = PreprocessConfig().interpolation
        kept: Any = LabelledField(resize(image, shape, interpolation), resize(cells, shape, "nearest"), f"field-{seed}")
    else:
        kept = cut_cells(image, cells, organelles, field.voxel_size, field.stages, name=f"field-{seed}")
    if kind == "organelles":
        # Cells as the packaged network sees them: what it learns from is the same, and thousands fit into the memory.
        cubes = [cube_of(cell, CUBE, PreprocessConfig()) for cell in kept]
        edge = VoxelSize(z=WORKING_NM, y=WORKING_NM, x=WORKING_NM)
        kept = [LabelledCell(cube.image, cube.labels, edge, cube.stage, cube.name) for cube in cubes]
    staging = folder / f".{seed}.partial"
    staging.write_bytes(pickle.dumps(kept, protocol=5))
    staging.rename(folder / f"field-{seed}.pickle")


def crowd(seed: int, number: int, defects: Sequence[str]) -> Field:
    """A field of 12 to 40 cells: three in five are hard, half have most cells in division, some sizes that differ."""
    from cmseg_core.phantom import draw_field
    from cmseg_core.schema import VoxelSize

    rng = np.random.default_rng(seed)
    cells = int(rng.integers(12, 41))
    edges = CROWD_VOXELS[number // 4 % len(CROWD_VOXELS)] if number % 4 == 0 else (WORKING_NM,) * 3
    size = VoxelSize.from_zyx(edges)
    asked: dict[str, Any] = {"hard": number % 5 < 3, "defects": defects}
    if number // 3 % 2:
        asked["stages"] = tuple(int(stage) for stage in rng.choice([1, 2, 3, 4, 5], cells, p=DIVIDING))
    if number % 7 == 0:
        asked["diameter_nm"] = (1000.0, 2900.0)
    if number % 6 == 1:
        asked["fill"] = 0.68
    return draw_field(seed, cells=cells, voxel_size=size, **asked)


def fields(folder: Path, kind: str, first: int, count: int, workers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["NUMBA_NUM_THREADS"] = "1"
    draw(folder, kind, 0, first)  # compiles for all
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(partial(draw, folder, kind, first=first), range(1, count), chunksize=1)


def read(folder: Path) -> list[Any]:
    """What `fields` kept, by name."""
    return [pickle.loads(path.read_bytes()) for path in sorted(folder.glob("field-*.pickle"))]


def case(folder: Path, number: int, preset: str, out: Path, settings: dict[str, Any]) -> None:
    from cmseg_core.evaluation.trials import score_cell
    from cmseg_core.morphology.review import review_score
    from cmseg_core.organelles.folds import cross_validation
    from cmseg_core.organelles.training import TrainingConfig, train
    from cmseg_core.organelles.trial import try_cell
    from cmseg_core.schema import C_MEROLAE, PipelineConfig

    pipeline = PipelineConfig(preset="paper") if preset == "paper" else PipelineConfig()
    cells = [cell for group in read(folder) for cell in group]
    fold = cross_validation([cell.stage for cell in cells])[number - 1]
    config = TrainingConfig.of(preset, **settings)
    began = time.monotonic()
    done = train(
        [cells[i] for i in fold.training], config, C_MEROLAE, preprocess=pipeline.preprocess, on_epoch=tell, **ROOMY
    )
    trained = time.monotonic() - began
    records = []
    for cell in (cells[i] for i in fold.validation):
        trial = try_cell(cell, done.model, pipeline.organelles, pipeline.preprocess)
        review = review_score(trial.fused.expected_iou, C_MEROLAE)
        ways = (trial.fused, trial.single, trial.uncalibrated)
        records.append(
            score_cell(
                cell.labels,
                *ways,
                C_MEROLAE,
                cell.voxel_size,
                name=cell.name,
                stage=cell.stage,
                review_score=review,
            )
        )
    facts = {"case": number, "seconds": trained, "config": config.model_dump(mode="json")}
    out.write_bytes(pickle.dumps({**facts, "records": records, "stages": [cell.stage for cell in cells]}))
    print(f"{preset} case {number}: trained {trained:.0f} s, scored {time.monotonic() - began - trained:.0f} s")


ROOMY: dict[str, Any] = {"max_memory_gb": 100.0}


def tell(row: dict[str, Any]) -> None:
    """Print an epoch."""
    shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if v is not None}
    print(json.dumps(shown), flush=True)


def unet(folder: Path, validation: Path, out: Path, minutes: float, settings: dict[str, Any]) -> None:
    from cmseg_core.organelles.model import load_model, save_model
    from cmseg_core.organelles.training import TrainingConfig, train
    from cmseg_core.schema import C_MEROLAE, PreprocessConfig

    packaged = load_model(Path(__file__).parents[1] / "cmseg_core/organelles/models/unet-starter.keras")
    cells, kept = ([cell for group in read(place) for cell in group] for place in (folder, validation))
    config = TrainingConfig.of("best", section_size=packaged.section_size, max_minutes=minutes, **settings)
    print(f"{len(cells)} cells, {len(kept)} for validation", flush=True)
    done = train(
        cells, config, C_MEROLAE, preprocess=PreprocessConfig(), validation=kept, initial=packaged, on_epoch=tell,
        **ROOMY,
    )  # fmt: skip
    # The names of thousands of cells tell less than how they were drawn.
    metadata = {**done.model.metadata, "cells": f"{len(cells)} simulated cells", "validation": f"{len(kept)} cells"}
    save_model(replace(done.model, metadata=metadata), out, half=True)


def sam(
    folder: Path, validation: Path, out: Path, minutes: float, settings: dict[str, Any], initial: Path = PACKAGED_SAM
) -> None:
    from cmseg_core.foreground.sam import load_sam, save_sam
    from cmseg_core.foreground.training import SamTrainingConfig, train_sam

    config = SamTrainingConfig.model_validate({"steps": 1_000_000, "max_minutes": minutes, **settings})
    seen = read(folder)
    done = train_sam(seen, config, validation=read(validation), initial=load_sam(initial), on_epoch=tell)
    facts = {"training": config.model_dump(mode="json"), "fields": len(seen), "mask_iou": done.history[-1]["iou"]}
    save_sam(done.network, done.architecture, out, facts, done.head)


def steps(width: int, section: int, batch: int, seconds: float) -> None:
    """Time the training step in both precisions, in turns of a second."""
    import keras

    from cmseg_core.organelles.epochs import compile_network
    from cmseg_core.organelles.network import Precision, build_unet, precision
    from cmseg_core.organelles.training import TrainingConfig
    from cmseg_core.schema import C_MEROLAE

    rng = np.random.default_rng(0)
    images = rng.random((batch, section, section, 1), dtype=np.float32)
    labels = rng.integers(0, len(C_MEROLAE), (batch, section, section)).astype(np.int32)
    policies: tuple[Precision, ...] = ("float32", "mixed_bfloat16")
    networks, times = {}, {policy: [] for policy in policies}
    for policy in policies:
        with precision(policy):
            networks[policy] = build_unet(len(C_MEROLAE), None, width)
        compile_network(networks[policy], TrainingConfig.of("paper"))
        for _ in range(3):
            networks[policy].train_on_batch(images, labels)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for policy in policies:
            turn = time.monotonic() + 1
            while time.monotonic() < turn:
                began = time.perf_counter()
                float(np.asarray(networks[policy].train_on_batch(images, labels)))
                times[policy].append(time.perf_counter() - began)
    found = {policy: float(np.median(one)) for policy, one in times.items()}
    rates = {policy: f"{batch / one:.0f} sections/s" for policy, one in found.items()}
    faster = found["float32"] / found["mixed_bfloat16"]
    print(f"{keras.backend.backend()}, width {width}, {section} x {section}, batch {batch}: {rates}, {faster:.2f}")


def tables(folder: Path) -> None:
    from cmseg_core.evaluation.trials import summarise
    from cmseg_core.organelles.folds import cross_validation, section_counts
    from cmseg_core.schema import C_MEROLAE
    from flows.cross_validate import paper_tables
    from flows.evaluate import described

    for preset in ("paper", "best"):
        cases, records = [], []
        kept = sorted(folder.glob(f"{preset}-*.pickle"))
        parts: Sequence[dict[str, Any]] = [pickle.loads(path.read_bytes()) for path in kept]
        for part in parts:
            fold, size = cross_validation(part["stages"])[part["case"] - 1], part["config"]["section_size"]
            every = len(part["stages"])
            counts = section_counts(fold, part["stages"], [3 * size] * every, [size] * every)
            cases.append({"case": part["case"], "sections": counts})
            records += part["records"]
        document = {"cases": cases, **summarise(records, C_MEROLAE)}
        (folder / f"{preset}.json").write_text(json.dumps(document))
        text = f"{paper_tables(document)}\n\n{described(document, C_MEROLAE)}\n"
        (folder / f"{preset}.txt").write_text(text)
        print(preset, [round(part["seconds"]) for part in parts], "s", parts[0]["config"], "\n", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("steps")
    for name, number in (("width", 64), ("section", 256), ("batch", 16), ("seconds", 10)):
        one.add_argument(f"--{name}", type=int, default=number)
    one = commands.add_parser("fields")
    one.add_argument("folder", type=Path)
    one.add_argument("--kind", choices=("organelles", "cells", "six"), default="organelles")
    for name, number in (("first", 14_000), ("count", 4), ("workers", os.cpu_count() or 1)):
        one.add_argument(f"--{name}", type=int, default=number)
    one = commands.add_parser("case")
    one.add_argument("folder", type=Path)
    one.add_argument("number", type=int)
    one.add_argument("preset")
    one.add_argument("out", type=Path)
    one.add_argument("--config", dest="settings", type=json.loads, default={})
    for name in ("unet", "sam"):
        one = commands.add_parser(name)
        for place in ("folder", "validation", "out"):
            one.add_argument(place, type=Path)
        one.add_argument("--minutes", type=float, required=True)
        one.add_argument("--config", dest="settings", type=json.loads, default={})
        if name == "sam":
            one.add_argument("--initial", type=Path, default=PACKAGED_SAM)
    commands.add_parser("tables").add_argument("folder", type=Path)
    given = vars(parser.parse_args())
    {"steps": steps, "fields": fields, "case": case, "unet": unet, "sam": sam, "tables": tables}[given.pop("command")](
        **given
    )


if __name__ == "__main__":
    main()
