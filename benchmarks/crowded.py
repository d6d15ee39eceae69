"""Crowded simulated fields, on which the finding and separating of cells is scored, and learnt.

Run ``python -m benchmarks.crowded FOLDER`` (sets ``unseen``, ``hard`` and ``odd`` are drawn below FOLDER, one folder a
field, as ``cmseg phantom`` writes them), then ``cmseg evaluate MODEL FOLDER/SET --role sam`` for each set. No packaged
model has learnt from their seeds, nor were thresholds chosen on them; those were chosen on the set ``tuning``. The set
``dividing`` is what the packaged model learnt from beside crowds of all stages (``benchmarks/train_starters.sh``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cmseg_core.phantom import draw_field, write_acquisition
from cmseg_core.schema import VoxelSize

FINE = VoxelSize(z=30, y=20, x=20)
COARSE = VoxelSize(z=40, y=24, x=24)
CUBIC = VoxelSize(z=25, y=25, x=25)
WORKING = VoxelSize(z=36, y=36, x=36)
DEFECTS: list[list[str]] = [[], [], ["noise"], ["curtaining"], ["drift"], ["charging"]]
TUNING = 7440
UNSEEN = 21100
HARD = 21200
SETS = ("unseen", "hard", "odd", "tuning", "dividing")
ODD: dict[str, dict[str, Any]] = {
    "dense": {"seed": 21300, "cells": 24, "fill": 0.68},
    "low-contrast": {"seed": 21301, "cells": 16, "hard": True, "defects": ["drift", "jitter"]},
    "noise": {"seed": 21302, "cells": 16, "defects": ["noise"]},
    "curtaining": {"seed": 21303, "cells": 16, "defects": ["curtaining"]},
    "anisotropic": {"seed": 21304, "cells": 16, "voxel_size": VoxelSize(z=100, y=20, x=20)},
    "tiny-and-giant": {"seed": 21305, "cells": 20, "diameter_nm": (1000.0, 2900.0)},
    "dividing": {"seed": 21306, "cells": 14, "stages": (2, 3, 4, 5, 3, 4, 5, 2, 3, 4, 5, 4, 3, 5)},
}
"""One field for each thing that is hard in a way of its own."""


def fields(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and arguments of :func:`cmseg_core.phantom.draw_field` of each field of a set."""
    if name == "odd":
        yield from ODD.items()
    elif name == "dividing":
        yield from _dividing()
    elif name == "tuning":
        yield from _ten("easy", TUNING, hard=False)
        yield from _ten("hard", TUNING + 10, hard=True)
    else:
        yield from _ten(name, UNSEEN if name == "unseen" else HARD, hard=name == "hard")


def _ten(name: str, first: int, *, hard: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ten fields of 12 to 40 cells."""
    for n in range(10):
        size = (FINE, COARSE, CUBIC)[n % 3]
        yield f"{name}-{n}", {"seed": first + n, "cells": 12 + 28 * n // 9, "hard": hard, "voxel_size": size}


def _dividing() -> Iterator[tuple[str, dict[str, Any]]]:
    """Fields of 12 to 40 cells, three quarters of them in division."""
    for n in range(64):
        coarse = n < 40
        k = n if coarse else n - 40
        cells, rng = 12 + 28 * (k % 8) // 7, np.random.default_rng(k if coarse else 100 + k)
        stages = tuple(int(stage) for stage in rng.choice([1, 2, 3, 4, 5], cells, p=[0.1, 0.15, 0.25, 0.25, 0.25]))
        asked = {"cells": cells, "defects": DEFECTS[(k // 2) % 6]}
        if coarse:
            asked |= {"seed": 6400 + k, "hard": k % 5 < 3, "stages": stages, "voxel_size": WORKING}
        else:
            asked |= {"seed": 6132 + k, "hard": k % 3 != 1, "voxel_size": (FINE, CUBIC, COARSE)[k % 3]}
            asked |= {"stages": stages} if k % 2 else {"defects": []}
        yield f"field-{asked['seed']}", asked


def main() -> None:
    """Draw the sets that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=["unseen", "hard", "odd"], choices=SETS)
    arguments = parser.parse_args()
    for which in arguments.sets:
        for name, asked in fields(which):
            place = arguments.folder / which / name
            if not place.exists():
                write_acquisition(draw_field(**({"voxel_size": FINE} | asked)), place)
                print(place, flush=True)


if __name__ == "__main__":
    main()
