"""Real FIB-SEM with six hand-labelled classes: `cmseg train` against nnU-Net on slices that both have not seen.

    python -m benchmarks.epfl split FOLDER --data EPFL_6CLASS     # makes the data sets epfl and epfl-kept
    python -m benchmarks.epfl train FOLDER --minutes 30           # cmseg train, cmseg evaluate
    PEER/bin/python benchmarks/epfl_nnunet.py FOLDER --minutes 30 # the peer, in an environment of its own
    python -m benchmarks.epfl table FOLDER --figure FIGURE.png    # Dice of both, and the curves

EPFL_6CLASS holds 20 neighbouring slices of mouse hippocampus (5 nm) and 21 others from further down, in short runs,
with the labels of GraphLabEMproj/unet: ``block_z000-019_raw.tif``, ``sparse_raw.tif``, their ``_labels.tif``, and
``slices.json`` with the numbers of the slices. The images are those of the EPFL CVLab (Lucchi et al.).

Kept out are `KEPT_OF_BLOCK` slices at one end of the block, the only place with axon sheath, and of the runs of
neighbouring sparse slices the one that lies furthest from any other. The labels are uneven from slice to slice: within
the last seven slices of the block the vesicles double and halve again in 5 nm, and no model can follow that. So the
kept-out end is the one where the labels of neighbouring slices agree better (`agreement`), which is found from the
labels alone. Learnt from is every slice that lies at least `GAP` slices (40 nm, a vesicle) from all kept-out ones; what
lies between is used for nothing. The data sets are made,
trained on and scored by the command line alone, in the workspace FOLDER/workspace; settings are the defaults.

The peer needs nnU-Net v2 in a virtual environment of its own (see benchmarks/epfl_nnunet.py); it is no dependency of
cmseg. `table` scores the labels that both wrote for the kept-out slices with one function: Dice over all slices
together, and of the mitochondrion as interior and boundary together. Beside them stands what the labels themselves
reach: the Dice of every kept-out slice's labels with those of the next slice, 5 nm away.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

CLASSES = ("outside", "membrane", "mitochondrion boundary", "mitochondrion interior", "PSD", "vesicle", "axon sheath")
MITOCHONDRION = "mitochondrion"
PARTS = (2, 3)
"""Ids of the classes that make up a mitochondrion."""
KEPT_OF_BLOCK = 4
GAP = 8
"""Slices; 5 nm each."""
VOXEL_SIZE = ("5", "5", "5")


def split(block: list[int], sparse: list[int], labels: NDArray[np.uint8]) -> tuple[list[int], list[int]]:
    """Numbers of the slices to learn from, and of those that are kept out.

    Parameters
    ----------
    block, sparse : list of int
        Numbers of the labelled slices, ascending.
    labels : uint8 (z, y, x)
        Of the block.
    """
    every = sorted({*block, *sparse})
    runs = [run.tolist() for run in np.split(sparse, np.flatnonzero(np.diff(sparse) > 1) + 1)]

    def distance(run: list[int]) -> int:
        return min(abs(a - b) for a in run for b in every if b not in run)

    # One slice alone says little, and the run at either end would be judged by one side only.
    inner = [run for run in runs[1:-1] if len(run) > 1]
    ends = (slice(0, KEPT_OF_BLOCK), slice(len(block) - KEPT_OF_BLOCK, len(block)))
    end = max(ends, key=lambda end: np.mean(list(agreement([labels[end]]).values())))
    kept = [*block[end], *max(inner, key=distance)]
    return [z for z in every if min(abs(z - k) for k in kept) >= GAP], kept


def agreement(runs: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Dice of the labels of every slice with those of the next, for each class over all pairs together."""
    pairs = [(one[:-1].ravel(), one[1:].ravel()) for one in runs]
    return dices(*(np.concatenate(side) for side in zip(*pairs, strict=True)))


def dices(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> dict[str, float]:
    """Dice of the whole mitochondrion and of every foreground class that is there, of two arrays of labels."""
    size = len(CLASSES)
    table = np.bincount(one.astype(np.int64) * size + other, minlength=size * size).reshape(size, size)
    scores = {}
    for name, ids in {MITOCHONDRION: list(PARTS), **{name: [i] for i, name in enumerate(CLASSES) if i}}.items():
        both, either = table[np.ix_(ids, ids)].sum(), table[ids].sum() + table[:, ids].sum()
        if either:
            scores[name] = float(2 * both / either)
    return scores


def make_data_sets(folder: Path, data: Path) -> None:
    """Write the slices of either side as stacks, and make the data sets of them."""
    numbers = json.loads((data / "slices.json").read_text())
    labels = tifffile.imread(data / "block_z000-019_labels.tif")
    learn, kept = split(numbers["block"], numbers["sparse"], labels)
    folder.mkdir(parents=True, exist_ok=True)
    taxonomy = {"classes": [{"id": i, "name": name} for i, name in enumerate(CLASSES)]}
    (folder / "taxonomy.json").write_text(json.dumps(taxonomy))
    for name, chosen in (("epfl", learn), ("epfl-kept", kept)):
        cmseg(folder, "dataset", "create", name, "--taxonomy", str(folder / "taxonomy.json"))
        for part, stem, kind in (("block", "block_z000-019", "field"), ("sparse", "sparse", "sections")):
            places = [place for place, number in enumerate(numbers[part]) if number in chosen]
            out = folder / "slices" / name
            out.mkdir(parents=True, exist_ok=True)
            image, labels = out / f"{part}.tif", out / f"{part}-labels.tif"
            for path, suffix in ((image, "raw"), (labels, "labels")):
                stack = tifffile.imread(data / f"{stem}_{suffix}.tif")[places]
                tifffile.imwrite(path, stack, photometric="minisblack", compression="zlib")
            cmseg(folder, "dataset", "add", name, "--image", str(image), "--labels", str(labels),
                  "--voxel-size", *VOXEL_SIZE, "--kind", kind, "--name", part)  # fmt: skip
    # As `cmseg train` does without --validation: every fifth sample, where the block is the first.
    from flows.material import part as parted

    sections = [number for number in numbers["sparse"] if number in learn]
    _, checked = parted([None, *sections])
    (folder / "split.json").write_text(json.dumps({"learn": learn, "checked": checked, "kept": kept}))
    print(f"learnt from: {learn}\nof these for validation: {checked}\nkept out: {kept}")


def train_and_score(folder: Path, minutes: float, config: Path | None) -> None:
    """Train with the project's command, and label and score the kept-out slices."""
    model, labels = folder / "ours.keras", folder / "ours"
    model.unlink(missing_ok=True)
    shutil.rmtree(labels, ignore_errors=True)
    settings = () if config is None else ("--config", str(config))
    trained = cmseg(folder, "train", "epfl", "--max-minutes", str(minutes), "--out", str(model), *settings)
    scores = cmseg(folder, "evaluate", str(model), "epfl-kept", "--predictions", str(labels))
    (folder / "ours.json").write_text(json.dumps({"minutes": minutes, **trained, "evaluation": scores}))
    (folder / "ours-curve.json").write_text(json.dumps(curve_of(trained["run_id"], folder)))


def cmseg(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run the command in the workspace of the folder; gives what it prints with ``--json``."""
    environment = {**os.environ, "CMSEG_WORKSPACE": str((folder / "workspace").absolute())}
    command = [str(Path(sys.executable).with_name("cmseg")), *arguments, "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def curve_of(run_id: str, folder: Path) -> list[dict[str, Any]]:
    """Minutes since the start, and Dice of each class on windows of the validation slices, of every epoch."""
    from cmseg_core.tracking.connection import connect, default_tracking_uri

    client = connect(default_tracking_uri(folder / "workspace"))
    began = client.get_run(run_id).info.start_time
    rows: dict[int, dict[str, Any]] = {}
    for key in client.get_run(run_id).data.metrics:
        name = key.removeprefix("iou.")
        if name not in CLASSES[1:]:
            continue
        for point in client.get_metric_history(run_id, key):
            row = rows.setdefault(point.step, {"minutes": (point.timestamp - began) / 60_000, "dice": {}})
            row["dice"][name] = 2 * point.value / (1 + point.value)
    return [rows[step] for step in sorted(rows)]


def labels_of(folder: Path) -> NDArray[np.uint8]:
    """What a model said of the kept-out slices: ``block.tif``, and ``sparse-NNNNN.tif`` for every sparse slice."""
    sparse = (tifffile.imread(path) for path in sorted(folder.glob("sparse-*.tif")))
    found = [tifffile.imread(folder / "block.tif"), *sparse]
    return np.concatenate([one.reshape(-1, *one.shape[-2:]) for one in found])


def print_table(folder: Path, figure: Path | None) -> None:
    """Print the Dice of both as a Markdown table, and draw the curves."""
    kept = folder / "slices" / "epfl-kept"
    truth = [tifffile.imread(kept / f"{part}-labels.tif") for part in ("block", "sparse")]
    together = np.concatenate(truth).ravel()
    found = {name: labels_of(folder / name).ravel() for name in ("ours", "nnunet") if (folder / name).is_dir()}
    scores = {name: dices(labels, together) for name, labels in found.items()}
    (folder / "table.json").write_text(json.dumps(scores))
    columns = {**scores, "labels of the next slice": agreement(truth)}
    print(f"| class | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name in (MITOCHONDRION, *CLASSES[1:]):
        print(f"| {name} | {' | '.join(f'{score[name]:.3f}' for score in columns.values())} |")
    if figure is not None:
        curves = {name: json.loads((folder / f"{name}-curve.json").read_text()) for name in scores}
        draw(curves, scores, figure)


def draw(curves: dict[str, list[dict[str, Any]]], scores: dict[str, dict[str, float]], path: Path) -> None:
    """One panel a class: Dice on validation windows against minutes, and as a mark that of the kept-out slices."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    titles = {"ours": ("cmseg train", "C0"), "nnunet": ("nnU-Net v2, 2D", "C1")}
    drawing, panels = plt.subplots(2, 3, figsize=(10, 5.5), sharex=True, sharey=True, layout="constrained")
    for name, panel in zip(CLASSES[1:], panels.flat, strict=True):
        for who, rows in curves.items():
            title, colour = titles[who]
            times = [row["minutes"] for row in rows]
            panel.plot(times, [row["dice"].get(name) for row in rows], color=colour, lw=1.2, label=title)
            panel.plot(times[-1], scores[who][name], marker="D", color=colour, ms=6, clip_on=False)
        panel.set_title(name, fontsize=10)
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.3)
    panels[0, 0].legend(loc="lower right", fontsize=9, frameon=False)
    drawing.supxlabel("minutes of training", fontsize=10)
    drawing.supylabel("Dice", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)


def main() -> None:
    """Do one step of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    options = {name: steps.add_parser(name) for name in ("split", "train", "table")}
    for one in options.values():
        one.add_argument("folder", type=Path)
    options["split"].add_argument("--data", type=Path, required=True)
    options["train"].add_argument("--minutes", type=float, default=30)
    options["train"].add_argument("--config", type=Path, help="settings of the training that differ from the defaults")
    options["table"].add_argument("--figure", type=Path)
    given = parser.parse_args()
    if given.step == "split":
        make_data_sets(given.folder, given.data)
    elif given.step == "train":
        train_and_score(given.folder, given.minutes, given.config)
    else:
        print_table(given.folder, given.figure)


if __name__ == "__main__":
    main()
