"""The peer of benchmarks/epfl.py: nnU-Net v2's 2D configuration on the same slices, for the same time.

    python -m venv PEER
    PEER/bin/pip install torch==2.13.0        # first and exactly: other ranges resolve to builds with CUDA
    PEER/bin/pip install nnunetv2 torch==2.13.0
    PEER/bin/python benchmarks/epfl_nnunet.py FOLDER --minutes 30

FOLDER is where `python -m benchmarks.epfl split` wrote the slices. nnU-Net plans, preprocesses, augments, trains and
predicts as it does by itself, with four differences, all for a machine without a GPU:

- it plans for 1 GB of memory in place of 8: patches and batches are then such that a training of minutes has steps by
  the hundred, not by the ten;
- the training ends by the clock, and the rate follows nnU-Net's polynomial over the elapsed share of the time rather
  than over 1000 epochs; an epoch is 25 steps and 3 batches of validation;
- one process augments, beside two threads that compute;
- forward passes run in bfloat16 (``--float32`` switches that off), as those of `cmseg train` do.

Time is counted from the first step; planning and preprocessing are reported apart. Predictions are made with nnU-Net's
sliding window and mirroring. Left in FOLDER are the labels in ``nnunet``, ``nnunet.json`` and ``nnunet-curve.json``.

References
----------
.. [1] Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
       Nature Methods 18, 203-211 (2021).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

CORES = len(os.sched_getaffinity(0))
NAME = "Dataset001_EPFL"
STEPS, CHECKS = 25, 3
MEMORY_GB = 1.0


def write_raw(folder: Path, raw: Path, split: dict[str, list[int]]) -> dict[str, list[str]]:
    """Every slice to learn from as a case of nnU-Net's; gives the cases to train on and to validate with."""
    import tifffile
    from skimage.io import imsave

    taxonomy = json.loads((folder / "taxonomy.json").read_text())["classes"]
    for part in ("imagesTr", "labelsTr"):
        (raw / NAME / part).mkdir(parents=True)
    slices = [
        pair
        for part in ("block", "sparse")
        for pair in zip(
            tifffile.imread(folder / "slices" / "epfl" / f"{part}.tif"),
            tifffile.imread(folder / "slices" / "epfl" / f"{part}-labels.tif"),
            strict=True,
        )
    ]
    cases: dict[str, list[str]] = {"train": [], "val": []}
    for number, (image, labels) in zip(split["learn"], slices, strict=True):
        case = f"slice_{number:03}"
        cases["val" if number in split["checked"] else "train"].append(case)
        imsave(raw / NAME / "imagesTr" / f"{case}_0000.png", image, check_contrast=False)
        imsave(raw / NAME / "labelsTr" / f"{case}.png", labels, check_contrast=False)
    described = {
        "channel_names": {"0": "EM"},
        "labels": {("background" if c["id"] == 0 else c["name"]): c["id"] for c in taxonomy},
        "numTraining": len(slices),
        "file_ending": ".png",
    }
    (raw / NAME / "dataset.json").write_text(json.dumps(described))
    return cases


def train(plans: dict[str, Any], dataset: dict[str, Any], minutes: float, half: bool) -> tuple[Any, list[dict]]:
    """Train for so many minutes; gives the trainer, and minutes and Dice of every epoch."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class ByTheClock(nnUNetTrainer):
        def elapsed(self) -> float:
            return (time.monotonic() - self.began) / (60 * minutes)

        def train_step(self, batch: dict) -> dict:
            # The polynomial of nnunetv2.training.lr_scheduler.polylr, of time in place of epochs.
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * max(1 - self.elapsed(), 0) ** 0.9
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                return super().train_step(batch)

        def run_training(self) -> None:
            self.on_train_start()
            self.logger.plot_progress_png = lambda folder: None
            self.began, self.steps, self.curve = time.monotonic(), 0, []
            while self.elapsed() < 1:
                self.on_epoch_start()
                self.on_train_epoch_start()
                losses = []
                while len(losses) < STEPS and self.elapsed() < 1:
                    losses.append(self.train_step(next(self.dataloader_train)))
                self.steps += len(losses)
                self.on_train_epoch_end(losses)
                with torch.no_grad():
                    self.on_validation_epoch_start()
                    checks = [self.validation_step(next(self.dataloader_val)) for _ in range(CHECKS)]
                    self.on_validation_epoch_end(checks)
                dice = self.logger.get_value("dice_per_class_or_region", step=-1)
                names = [name for name, label in dataset["labels"].items() if label]
                scores = {n: None if d != d else float(d) for n, d in zip(names, dice, strict=True)}
                self.curve.append({"minutes": self.elapsed() * minutes, "dice": scores})
                self.on_epoch_end()
            self.on_train_end()

    trainer = ByTheClock({**plans, "continue_training": False}, "2d", 0, dataset, torch.device("cpu"))
    trainer.run_training()
    return trainer, trainer.curve


def predict(trainer: Any, folder: Path, out: Path, half: bool) -> None:
    """Label the kept-out slices, under the file names that `cmseg evaluate --predictions` uses."""
    import numpy as np
    import tifffile
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    out.mkdir()
    for part in ("block", "sparse"):
        found = []
        for image in tifffile.imread(folder / "slices" / "epfl-kept" / f"{part}.tif"):
            # As nnU-Net's reader of natural images gives them: (channel, 1, y, x), and a spacing without meaning.
            given = image[None, None].astype(np.float32)
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                found.append(predictor.predict_single_npy_array(given, {"spacing": (999, 1, 1)})[0])
        labels = np.stack(found).astype(np.uint8)
        if part == "block":
            tifffile.imwrite(out / "block.tif", labels, compression="zlib")
        else:
            for number, one in enumerate(labels):
                tifffile.imwrite(out / f"sparse-{number:05}.tif", one[None], compression="zlib")


def main() -> None:
    """Plan, preprocess, train, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--float32", action="store_true")
    given = parser.parse_args()
    home = given.folder.absolute() / "nnunet-work"
    shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(given.folder / "nnunet", ignore_errors=True)
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(home / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": str(CORES), "OMP_NUM_THREADS": str(CORES)}
    split = json.loads((given.folder / "split.json").read_text())

    began = time.monotonic()
    cases = write_raw(given.folder, home / "raw", split)
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    torch.set_num_threads(CORES)
    extract_fingerprints([1], num_processes=CORES)
    plan_experiments([1], gpu_memory_target_in_gb=MEMORY_GB)
    preprocess([1], configurations=("2d",), num_processes=(CORES,))
    prepared = time.monotonic() - began
    place = home / "preprocessed" / NAME
    (place / "splits_final.json").write_text(json.dumps([cases]))
    plans, dataset = (json.loads((place / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))

    trainer, curve = train(plans, dataset, given.minutes, half=not given.float32)
    (given.folder / "nnunet-curve.json").write_text(json.dumps(curve))
    began = time.monotonic()
    predict(trainer, given.folder, given.folder / "nnunet", half=not given.float32)
    facts = {
        "minutes": given.minutes,
        "preparation_s": prepared,
        "prediction_s": time.monotonic() - began,
        "steps": trainer.steps,
        "patch": list(trainer.configuration_manager.patch_size),
        "batch": trainer.batch_size,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
    }
    (given.folder / "nnunet.json").write_text(json.dumps(facts))
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    sys.exit(main())
