"""Six-case cross-validation on 68 simulated cells: preset ``paper``, reduced, against preset ``best`` at equal time.

    python benchmarks/six_cases.py FOLDER [--width 8] [--section 64] [--cells-only]

FOLDER receives the fields, the data set's workspace, and of each preset its scores (``paper.json``, ``best.json``)
and its tables in the form of the paper's Tables 1 and 3 (``paper.txt``, ``best.txt``). The cells are those of Kousaka
et al. 2025, Table 1: 25, 13, 12, 12 and 6 of the stages 1 to 5, in four fields of different looks. Every case of preset
``best`` gets the minutes that a case of preset ``paper`` took on the average in the same run, scoring included. A
preset that has its scores is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from cmseg_core.phantom import draw_field, write_acquisition
from cmseg_core.schema import VoxelSize

STAGES_OF_FIELDS = ((7, 3, 3, 3, 2), (6, 4, 3, 3, 1), (6, 3, 3, 3, 2), (6, 3, 3, 3, 1))
"""Cells of each stage in each field: 68 in all."""
FIRST_SEED = 9000
VOXEL_SIZE = VoxelSize(z=30, y=20, x=20)
CASES = 6


def simulate(folder: Path) -> list[Path]:
    """Write the four fields; the last one is hard."""
    fields = []
    for number, counts in enumerate(STAGES_OF_FIELDS):
        place = folder / f"field-{FIRST_SEED + number}"
        fields.append(place)
        if not place.exists():
            stages = [stage for stage, count in enumerate(counts, 1) for _ in range(count)]
            hard = number == len(STAGES_OF_FIELDS) - 1
            field = draw_field(FIRST_SEED + number, cells=len(stages), voxel_size=VOXEL_SIZE, stages=stages, hard=hard)
            write_acquisition(field, place)
    return fields


def cmseg(*words: object) -> str:
    """Output of a command; ends this one where it fails."""
    done = subprocess.run(
        [Path(sys.executable).with_name("cmseg"), *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--section", type=int, default=64)
    parser.add_argument("--cells-only", action="store_true", help="make the data set and stop")
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["CMSEG_WORKSPACE"] = str(folder / "workspace")
    fields = simulate(folder)
    if not (folder / "workspace").exists():
        cmseg("dataset", "create", "cells68")
        for place in fields:
            truth = ("--labels", place / "organelles.tif", "--cells", place / "cells.tif")
            cmseg("dataset", "add", "cells68", "--image", place / "stack.tif", *truth)
    samples = json.loads(cmseg("dataset", "show", "cells68", "--json"))["samples"]
    stages = [sample["stage"] for sample in samples]
    print(f"{len(stages)} cells:", ", ".join(f"{stages.count(s)} of stage {s}" for s in range(1, 6)))
    if given.cells_only:
        return

    # The paper's steps of an epoch at this size: every section of 63 cells in three directions.
    steps = 63 * 3 * given.section // 16
    shared = {"width": given.width, "section_size": given.section}
    began = time.monotonic()
    run(folder, "paper", {**shared, "steps_per_epoch": steps})
    clock = folder / "paper.minutes"
    if not clock.exists():
        clock.write_text(f"{(time.monotonic() - began) / 60:.2f}\n")
    run(folder, "best", {**shared, "max_minutes": float(clock.read_text()) / CASES, "epochs": 100_000})


def run(folder: Path, preset: str, settings: dict[str, object]) -> None:
    """Train and score all cases with a preset, unless that has been done."""
    from flows.cross_validate import paper_tables

    outcome = folder / f"{preset}.json"
    if outcome.exists():
        return
    config = folder / f"{preset}.yaml"
    config.write_text(json.dumps(settings))
    text = cmseg("train", "cells68", "--preset", preset, "--config", config, "--all-cases", "--json")
    (folder / f"{preset}.txt").write_text(paper_tables(json.loads(text)) + "\n")
    outcome.write_text(text)


if __name__ == "__main__":
    main()
