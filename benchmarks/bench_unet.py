"""Training and inference of the organelle network in bfloat16 against float32, side by side.

Run it with ``python -m benchmarks.bench_unet [--width 16] [--section 128] [--batch 16] [--repeats 10]``; the backend is
the one that ``KERAS_BACKEND`` names.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from cmseg_core.organelles.losses import compound_loss
from cmseg_core.organelles.network import Precision, build_unet, precision

CLASSES = 6


def rate(step: Callable[[], object], batch: int, repeats: int) -> float:
    """Sections a second: the median of `repeats` steps, after two that compile."""
    for _ in range(2):
        step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return batch / float(np.median(seconds))


def measure(policy: Precision, width: int, section: int, batch: int, repeats: int) -> tuple[float, float]:
    """Sections a second in training and in inference."""
    rng = np.random.default_rng(0)
    images = rng.random((batch, section, section, 1), dtype=np.float32)
    labels = rng.integers(0, CLASSES, (batch, section, section), dtype=np.int32)
    with precision(policy):
        network = build_unet(CLASSES, None, width)
    network.compile(optimizer=keras.optimizers.AdamW(1e-3), loss=compound_loss())
    training = rate(lambda: network.train_on_batch(images, labels), batch, repeats)
    return training, rate(lambda: network.predict_on_batch(images), batch, repeats)


def main() -> None:
    """Print a table of both precisions and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("width", 16), ("section", 128), ("batch", 16), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    shape = f"{options.batch} sections of {options.section} x {options.section}"
    print(f"{keras.backend.backend()}, width {options.width}, batches of {shape}")
    print(f"{'':16}{'training':>12}{'inference':>12}   sections a second")
    found = {}
    for policy in ("float32", "mixed_bfloat16"):
        found[policy] = measure(policy, options.width, options.section, options.batch, options.repeats)
        print(f"{policy:16}{found[policy][0]:12.1f}{found[policy][1]:12.1f}")
    ratios = [b / a for a, b in zip(found["float32"], found["mixed_bfloat16"], strict=True)]
    print(f"{'ratio':16}{ratios[0]:12.2f}{ratios[1]:12.2f}")


if __name__ == "__main__":
    main()
