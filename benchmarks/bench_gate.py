"""How often the gate lets a challenger through that is so much better or worse than the champion.

Simulated confusion tables: five foreground classes, whose IoU in a cell differs from model to model by the gain given,
with a standard deviation of .06 (see ``CELL_SPREAD``); the cells differ far more from each other. For the paper's 68
cells (25, 13, 12, 12 and 6 in stages 1 to 5) and for one cell a stage.

    python -m benchmarks.bench_gate [--rounds N]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmseg_core.evaluation.gate import CELL_SPREAD, judge
from cmseg_core.evaluation.tables import format_table
from cmseg_core.schema import C_MEROLAE, STAGES, Stage

CELLS = {"68 cells": (25, 13, 12, 12, 6), "5 cells": (1, 1, 1, 1, 1)}
GAINS = (-0.02, 0.0, 0.01, 0.02, 0.03)
VOXELS = 1000


@dataclass(frozen=True, eq=False)
class SimulatedCell:
    """A cell with its counts."""

    name: str
    stage: Stage
    table: NDArray[np.int64]


def main() -> None:
    """Print the share of challengers that pass, and that fall in some class and stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    rows = []
    for title, counts in CELLS.items():
        for gain in GAINS:
            verdicts = [judge(*rivals(counts, gain, seed), C_MEROLAE) for seed in range(rounds)]
            passed = np.mean([verdict.passed for verdict in verdicts])
            fell = np.mean([any(change.falls for change in verdict.changes) for verdict in verdicts])
            rows.append((title, f"{gain:+.2f}", float(passed), float(fell)))
    print(format_table(("cells", "gain in IoU", "passed", "a class fell"), rows, digits=2))


def rivals(counts: Sequence[int], gain: float, seed: int) -> tuple[list[SimulatedCell], list[SimulatedCell]]:
    """Champion and challenger on the same cells."""
    rng = np.random.default_rng(seed)
    stages = [stage for stage, count in zip(STAGES, counts, strict=True) for _ in range(count)]
    classes = len(C_MEROLAE.foreground)
    level = rng.uniform(0.4, 0.85, (len(stages), classes))
    change = gain + rng.normal(0, CELL_SPREAD, level.shape)
    return tuple(_cells(stages, np.clip(level + sign * change / 2, 0, 1)) for sign in (-1, 1))  # type: ignore[return-value]


def _cells(stages: Sequence[Stage], ious: NDArray[np.float64]) -> list[SimulatedCell]:
    cells = []
    for number, (stage, parts) in enumerate(zip(stages, ious, strict=True)):
        table = np.zeros((len(C_MEROLAE), len(C_MEROLAE)), np.int64)
        for c, part in zip(C_MEROLAE.foreground, parts, strict=True):
            table[c.id, c.id] = round(VOXELS * part)
            table[c.id, 0] = VOXELS - table[c.id, c.id]
        cells.append(SimulatedCell(str(number), stage, table))
    return cells


if __name__ == "__main__":
    main()
