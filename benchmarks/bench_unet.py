"""Training and inference of the organelle network in bfloat16 against float32, side by side.

    python -m benchmarks.bench_unet --width 16 --section 128 --batch 8 16 32 --repeats 10

Prints a Markdown table of sections a second and of their ratios to float32; the backend is the one that
``KERAS_BACKEND`` names. With TensorFlow it also calls the network through a ``tf.function`` of its own, as the peer of
``predict_on_batch``, which is what inference uses since every backend has it. Turns alternate, so that other work on
the machine falls on all alike; still, the ratios say more than the times.
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


POLICIES: tuple[Precision, ...] = ("float32", "mixed_bfloat16")
Step = Callable[[], object]


def steps(policy: Precision, width: int, section: int, batch: int) -> dict[str, Step]:
    """A step of training, and of inference by one or two calls."""
    rng = np.random.default_rng(0)
    images = rng.random((batch, section, section, 1), dtype=np.float32)
    labels = rng.integers(0, CLASSES, (batch, section, section), dtype=np.int32)
    with precision(policy):
        network = build_unet(CLASSES, None, width)
    network.compile(optimizer=keras.optimizers.AdamW(1e-3), loss=compound_loss())
    found: dict[str, Step] = {
        "training": lambda: network.train_on_batch(images, labels),
        "predict_on_batch": lambda: network.predict_on_batch(images),
    }
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        graph = tf.function(lambda x: network(x, training=False))
        found["tf.function"] = lambda: graph(tf.constant(images)).numpy()
    return found


def rates(work: dict[tuple[Precision, str], Step], batch: int, repeats: int) -> dict[tuple[Precision, str], float]:
    """Sections a second of every step: the median of `repeats` turns, after two that compile."""
    seconds: dict[tuple[Precision, str], list[float]] = {key: [] for key in work}
    for turn in range(-2, repeats):
        for key, step in work.items():
            start = time.perf_counter()
            step()
            if turn >= 0:
                seconds[key].append(time.perf_counter() - start)
    return {key: batch / float(np.median(times)) for key, times in seconds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 16), ("section", 128), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    options = parser.parse_args()
    print(f"{keras.backend.backend()}, width {options.width}, sections of {options.section} x {options.section}\n")
    print("| batch | call | float32, sections/s | bfloat16, sections/s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for batch in options.batch:
        work: dict[tuple[Precision, str], Step] = {
            (policy, call): step
            for policy in POLICIES
            for call, step in steps(policy, options.width, options.section, batch).items()
        }
        found = rates(work, batch, options.repeats)
        for call in dict.fromkeys(call for _, call in found):
            plain, half = (found[policy, call] for policy in POLICIES)
            print(f"| {batch} | {call} | {plain:.1f} | {half:.1f} | {half / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
