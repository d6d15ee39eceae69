"""Crowded simulated fields, on which the finding and separating of cells is scored.

Run ``python -m benchmarks.crowded FOLDER`` (sets ``unseen``, ``hard`` and ``odd`` are drawn below FOLDER, one folder a
field, as ``cmseg phantom`` writes them), then ``cmseg evaluate MODEL FOLDER/SET --role sam`` for each set. No packaged
model has learnt from the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmseg_core.phantom import draw_field, write_acquisition
from cmseg_core.schema import VoxelSize

FINE = VoxelSize(z=30, y=20, x=20)
COARSE = VoxelSize(z=40, y=24, x=24)
CUBIC = VoxelSize(z=25, y=25, x=25)
UNSEEN = 21100
HARD = 21200
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
        return
    first = UNSEEN if name == "unseen" else HARD
    for n in range(10):
        voxel_size = (FINE, COARSE, CUBIC)[n % 3]
        # From 12 to 40 cells.
        yield f"{name}-{n}", {"seed": first + n, "cells": 12 + 28 * n // 9, "hard": name == "hard",
                              "voxel_size": voxel_size}  # fmt: skip


def main() -> None:
    """Draw the sets that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=["unseen", "hard", "odd"], choices=["unseen", "hard", "odd"])
    arguments = parser.parse_args()
    for which in arguments.sets:
        for name, asked in fields(which):
            place = arguments.folder / which / name
            if not place.exists():
                write_acquisition(draw_field(**({"voxel_size": FINE} | asked)), place)
                print(place, flush=True)


if __name__ == "__main__":
    main()
