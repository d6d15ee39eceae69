"""How much of a training is spent in the network's step, and bfloat16 against float32, side by side.

    python -m benchmarks.bench_training --width 16 --section 128 --batch 8 --turns 3

Sections are drawn from cubes of cells, augmented and taken by the network as `cmseg train` does it. Both precisions
train in the same process, some steps in turn, so that other work on the machine falls on both alike. On a busy machine
the ratio of the processor time says more than that of the sections a second. The backend is the one that
``KERAS_BACKEND`` names.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from cmseg_core.organelles.dataset import Batch, Cube, SectionSampler
from cmseg_core.organelles.epochs import compile_network
from cmseg_core.organelles.network import Precision, build_unet, precision
from cmseg_core.organelles.normalization import FusedBatchNormalization
from cmseg_core.organelles.training import TrainingConfig
from cmseg_core.schema import C_MEROLAE

POLICIES: tuple[Precision, ...] = ("float32", "mixed_bfloat16")
TURN, UNNOTED = 10, 3
"""Steps that one precision takes before the other has its turn, and how many of them are not noted: their batches were
made while the other had its turn."""


def simulated_cubes(count: int, size: int) -> list[Cube]:
    """Cubes of noise with a block of every class: what is drawn from them costs what that of real cells costs."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, len(C_MEROLAE), (8, 8, 8)), np.ones((size // 8,) * 3)).astype(np.uint8)
    images = [rng.integers(0, 255, labels.shape).astype(np.uint8) for _ in range(count)]
    return [Cube(image, labels, f"cell {number}", None) for number, image in enumerate(images)]


class Timed:
    """A training of one precision that notes how long it waits for batches, how long its steps take, and the
    processor time of both."""

    def __init__(self, policy: Precision, config: TrainingConfig, cubes: list[Cube]) -> None:
        sampler = SectionSampler(
            cubes,
            C_MEROLAE,
            config.section_size,
            batch_size=config.batch_size,
            seed=0,
            augmentation=config.augmentation,
            channels=config.channels,
        )
        self.batches: Iterator[Batch] = sampler.batches(0, config.steps_per_epoch)
        with precision(policy):
            self.network = build_unet(
                len(C_MEROLAE),
                None,
                config.width,
                config.depth,
                channels_in=config.channels,
                normalization=FusedBatchNormalization,
            )
        compile_network(self.network, config)
        self.waiting: list[float] = []
        self.stepping: list[float] = []
        self.working: list[float] = []

    def turn(self) -> None:
        """Take some steps and note all but the first."""
        for number in range(TURN):
            start, worked = time.perf_counter(), time.process_time()
            images, labels = next(self.batches)
            drawn = time.perf_counter()
            self.network.train_on_batch(images, labels)
            if number >= UNNOTED:
                self.waiting.append(drawn - start)
                self.stepping.append(time.perf_counter() - drawn)
                self.working.append(time.process_time() - worked)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 16), ("section", 128), ("batch", 8), ("turns", 3), ("cells", 4), ("channels", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    config = TrainingConfig(
        width=options.width,
        section_size=options.section,
        batch_size=options.batch,
        channels=options.channels,
        steps_per_epoch=(1 + options.turns) * TURN,
    )
    cubes = simulated_cubes(options.cells, options.section)
    runs = {policy: Timed(policy, config, cubes) for policy in POLICIES}
    for run in runs.values():
        run.turn()  # the first one compiles
        run.waiting, run.stepping, run.working = [], [], []
    for _ in range(options.turns):
        for run in runs.values():
            run.turn()
    size = f"sections of {options.section} x {options.section}, batches of {options.batch}"
    noted = options.turns * (TURN - UNNOTED)
    print(f"{keras.backend.backend()}, width {options.width}, {size}, {noted} steps each\n")
    print("| precision | share of the time in the step | sections/s | ratio | processor time a step | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    # Medians: a pause that other work forces on one step does not count.
    seconds = {name: float(np.median(np.add(run.stepping, run.waiting))) for name, run in runs.items()}
    worked = {name: float(np.median(run.working)) for name, run in runs.items()}
    for name, run in runs.items():
        share = sum(run.stepping) / (sum(run.stepping) + sum(run.waiting))
        faster, lighter = seconds["float32"] / seconds[name], worked["float32"] / worked[name]
        rate = options.batch / seconds[name]
        print(
            f"| {name} | {share:.1%} | {rate:.1f} | {faster:.2f} | {worked[name]:.2f} s | {lighter:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
