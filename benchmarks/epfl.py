"""Real FIB-SEM with six hand-labelled classes: `cmseg train` against nnU-Net on slices that both have not seen.

    python -m benchmarks.epfl split FOLDER --data EPFL_6CLASS     # makes the data sets epfl and epfl-kept
    python -m benchmarks.epfl train FOLDER --minutes 30           # cmseg train, cmseg evaluate
    PEER/bin/python benchmarks/epfl_nnunet.py FOLDER --minutes 30 # the peer, in an environment of its own
    python -m benchmarks.epfl table FOLDER --figure FIGURE.png    # Dice of both, and the curves

EPFL_6CLASS holds 20 neighbouring slices of mouse hippocampus (5 nm) and 21 others from further down, in short runs,
with the labels of GraphLabEMproj/unet: ``block_z000-019_raw.tif``, ``sparse_raw.tif``, their ``_labels.tif``, and
``slices.json`` with the numbers of the slices. The images are those of the EPFL CVLab (Lucchi et al.).

Kept out are the last `KEPT_OF_BLOCK` slices of the block, the only place with axon sheath, and of the runs of
neighbouring sparse slices the one that lies furthest from any other. Learnt from is every slice that lies at least
`GAP` slices (40 nm, a vesicle) from all of these; what lies between is used for nothing. The data sets are made,
trained on and scored by the command line alone, in the workspace FOLDER/workspace; settings are the defaults.

The peer needs nnU-Net v2 in a virtual environment of its own (see benchmarks/epfl_nnunet.py); it is no dependency of
cmseg. `table` scores the labels that both wrote for the kept-out slices with one function: Dice over all slices
together, and of the mitochondrion as interior and boundary together.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
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


def split(block: list[int], sparse: list[int]) -> tuple[list[int], list[int]]:
    """Numbers of the slices to learn from, and of those that are kept out.

    Parameters
    ----------
    block, sparse : list of int
        Numbers of the labelled slices, ascending.
    """
    every = sorted({*block, *sparse})
    runs = [run.tolist() for run in np.split(sparse, np.flatnonzero(np.diff(sparse) > 1) + 1)]

    def distance(run: list[int]) -> int:
        return min(abs(a - b) for a in run for b in every if b not in run)

    # One slice alone says little, and the run at either end would be judged by one side only.
    inner = [run for run in runs[1:-1] if len(run) > 1]
    kept = [*block[-KEPT_OF_BLOCK:], *max(inner, key=distance)]
    return [z for z in every if min(abs(z - k) for k in kept) >= GAP], kept


def make_data_sets(folder: Path, data: Path) -> None:
    """Write the slices of either side as stacks, and make the data sets of them."""
    numbers = json.loads((data / "slices.json").read_text())
    learn, kept = split(numbers["block"], numbers["sparse"])
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


def dice_of(labels: Path, truth: Path) -> dict[str, float | None]:
    """Dice of every foreground class, and of the whole mitochondrion, over all kept-out slices together.

    Parameters
    ----------
    labels : path
        Folder with the labels of a model: ``block.tif``, and ``sparse-NNNNN.tif`` for every sparse slice.
    truth : path
        Folder with ``block-labels.tif`` and ``sparse-labels.tif``.
    """
    table = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    found = [tifffile.imread(path).reshape(-1) for path in (labels / "block.tif", *sorted(labels.glob("sparse-*.tif")))]
    meant = [tifffile.imread(truth / f"{part}-labels.tif").reshape(-1) for part in ("block", "sparse")]
    pairs = np.concatenate(meant).astype(np.int64) * len(CLASSES) + np.concatenate(found)
    table += np.bincount(pairs, minlength=table.size).reshape(table.shape)

    def dice(ids: NDArray[np.int64]) -> float | None:
        both = table[np.ix_(ids, ids)].sum()
        either = table[ids].sum() + table[:, ids].sum()
        return float(2 * both / either) if either else None

    scores = {name: dice(np.array([i])) for i, name in enumerate(CLASSES) if i}
    return {MITOCHONDRION: dice(np.array(PARTS)), **scores}


def print_table(folder: Path, figure: Path | None) -> None:
    """Print the Dice of both as a Markdown table, and draw the curves."""
    truth = folder / "slices" / "epfl-kept"
    found = {name: folder / name for name in ("ours", "nnunet") if (folder / name).is_dir()}
    scores = {name: dice_of(labels, truth) for name, labels in found.items()}
    (folder / "table.json").write_text(json.dumps(scores))
    print(f"| class | {' | '.join(scores)} |\n|{' --- |' * (len(scores) + 1)}")
    for name in (MITOCHONDRION, *CLASSES[1:]):
        values = ["-" if (value := score[name]) is None else f"{value:.3f}" for score in scores.values()]
        print(f"| {name} | {' | '.join(values)} |")
    if figure is not None:
        curves = {name: json.loads((folder / f"{name}-curve.json").read_text()) for name in scores}
        draw(curves, scores, figure)


def draw(curves: dict[str, list[dict[str, Any]]], scores: dict[str, dict[str, float | None]], path: Path) -> None:
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
