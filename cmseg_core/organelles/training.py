"""Training of the organelle network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cmseg_core.errors import InputError
from cmseg_core.organelles.augmentation import AugmentationConfig
from cmseg_core.organelles.calibration import fit_temperature
from cmseg_core.organelles.dataset import Cube, LabelledCell, SectionSampler, cube_of
from cmseg_core.organelles.losses import compound_loss, tversky_loss
from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.organelles.network import Precision, build_unet, precision
from cmseg_core.schema import Frozen, PreprocessConfig, Taxonomy

Positive = Annotated[int, Field(ge=1)]
VALIDATION_SEED = 982_451_653
"""Keeps the sections of the validation apart from those of the training, whatever its seed."""


class TrainingConfig(Frozen):
    """How a network is trained. :meth:`of` gives the presets."""

    preset: Literal["starter", "paper", "custom"] = "starter"
    width: Positive = 16
    depth: Positive = 4
    attention: bool = True
    channels: Literal[1, 3, 5] = 1
    """Neighbouring sections seen at once; the paper's network sees one."""
    section_size: Positive = 128
    epochs: Positive = 30
    steps_per_epoch: Positive = 100
    batch_size: Positive = 16
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    schedule: Literal["cosine", "paper", "constant"] = "cosine"
    """``cosine``: a warm-up over the first 3 %, then down to 1 %. ``paper``: 0.95 times as much each epoch."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of the kernels; biases and normalisation are left alone."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    loss: Literal["compound", "tversky", "focal_tversky"] = "compound"
    augmentation: AugmentationConfig | None = AugmentationConfig()
    """None: nothing but sections along all three axes."""
    precision: Precision = "mixed_bfloat16"
    """Batch normalisation and the softmax are computed in float32 all the same."""
    validation_batches: Positive = 12
    """Batches of validation sections scored after each epoch."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock limit; the schedule is shortened to end with it, so such a run cannot be repeated exactly."""
    seed: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def of(cls, preset: str, **changes: Any) -> TrainingConfig:
        """The preset ``starter`` or ``paper`` with some fields changed.

        Raises
        ------
        InputError
            Where there is no such preset.
        """
        if preset not in PRESETS:
            raise InputError(preset, "is not a preset", f"use {' or '.join(PRESETS)}")
        return cls.model_validate({**PRESETS[preset], **changes, "preset": preset})


PRESETS: dict[str, dict[str, Any]] = {
    "starter": {},
    "paper": {
        "width": 64,
        "section_size": 256,
        "epochs": 5,
        "steps_per_epoch": 3024,
        "batch_size": 16,
        "learning_rate": 1e-5,
        "schedule": "paper",
        "weight_decay": 0.004,
        "clip_norm": None,
        "loss": "tversky",
        "augmentation": None,
    },
}
"""``paper``: what Kousaka et al. 2025 state. Batch size and weight decay are not stated; the steps of an epoch are the
63 x 3 x 256 sections of 63 cells."""


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A trained model and what happened on the way: one dict an epoch (see :func:`train`)."""

    model: OrganelleModel
    history: list[dict[str, Any]]


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number before any epoch was worth keeping."""


def train(
    cells: Sequence[LabelledCell],
    config: TrainingConfig,
    taxonomy: Taxonomy,
    *,
    preprocess: PreprocessConfig | None = None,
    validation: Sequence[LabelledCell] = (),
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    initial: OrganelleModel | None = None,
) -> TrainingResult:
    """Train a network on labelled cells.

    The weights kept are those of the epoch with the best mean IoU of the foreground classes on the validation cells,
    or the last ones where there is no validation. With validation cells the temperature is fitted too.

    Parameters
    ----------
    cells : sequence of LabelledCell
    config : TrainingConfig
    taxonomy : Taxonomy
    preprocess : PreprocessConfig, optional
        The one that inference will use.
    validation : sequence of LabelledCell
        Never trained on.
    on_epoch : callable, optional
        Called with a dict after each epoch: ``epoch``, ``epochs``, ``loss``, ``learning_rate``, ``seconds``,
        ``sections_per_second``, and with validation ``mean_iou`` and ``iou`` (class name to number, or None).
    initial : OrganelleModel, optional
        Start from its weights (fine-tuning); its architecture then replaces the one of `config`.

    Returns
    -------
    TrainingResult

    Raises
    ------
    InputError
        Where the cells cannot be used, or `initial` has other classes.
    TrainingDiverged
        Where the loss is not finite in the first epoch.
    """
    preprocess = preprocess or PreprocessConfig()
    keras.utils.set_random_seed(config.seed)
    architecture = _architecture(config, taxonomy, initial)
    size, channels = _section_size(config, initial), int(architecture["channels_in"])
    cubes = [cube_of(cell, size, preprocess) for cell in cells]
    sampler = SectionSampler(
        cubes,
        taxonomy,
        size,
        batch_size=config.batch_size,
        seed=config.seed,
        augmentation=config.augmentation,
        channels=channels,
    )
    held_out = _validation_batches([cube_of(c, size, preprocess) for c in validation], config, taxonomy, size, channels)
    with precision(config.precision):
        network = build_unet(**architecture)
    if initial is not None:
        network.set_weights(initial.network.get_weights())
    _compile(network, config)

    history, best = _run(network, sampler, held_out, config, taxonomy, on_epoch)
    plain = _in_float32(architecture, best)
    temperature = fit_temperature(plain, held_out) if held_out else 1.0
    metadata = {
        "architecture": architecture,
        "training": config.model_dump(mode="json"),
        "preprocess": preprocess.model_dump(mode="json"),
        "cells": [cell.name for cell in cells],
        "validation": [cell.name for cell in validation],
        "epochs": len(history),
        "best": max(history, key=lambda row: row.get("mean_iou") or 0.0) if held_out else history[-1],
        "fine_tuned": initial is not None,
    }
    return TrainingResult(OrganelleModel(plain, taxonomy, size, temperature, metadata), history)


def _architecture(config: TrainingConfig, taxonomy: Taxonomy, initial: OrganelleModel | None) -> dict[str, Any]:
    if initial is None:
        return {
            "classes": len(taxonomy),
            "section_size": None,
            "width": config.width,
            "depth": config.depth,
            "attention": config.attention,
            "channels_in": config.channels,
        }
    if initial.taxonomy.names != taxonomy.names:
        reason = f"knows the classes {', '.join(initial.taxonomy.names)}"
        raise InputError("initial model", reason, f"start from a model of {', '.join(taxonomy.names)}, or from none")
    if "architecture" not in initial.metadata:
        raise InputError("initial model", "does not state its architecture", "start from a model that cmseg trained")
    return dict(initial.metadata["architecture"])


def _section_size(config: TrainingConfig, initial: OrganelleModel | None) -> int:
    size = config.section_size if initial is None else initial.section_size
    if size % 2**config.depth:
        raise InputError("section_size", f"{size} is not a multiple of {2**config.depth}", "change it, or the depth")
    return size


def _validation_batches(
    cubes: list[Cube], config: TrainingConfig, taxonomy: Taxonomy, size: int, channels: int
) -> list[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    if not cubes:
        return []
    sampler = SectionSampler(
        cubes, taxonomy, size, batch_size=config.batch_size, seed=VALIDATION_SEED, channels=channels
    )
    return [sampler.batch(number) for number in range(config.validation_batches)]


def _compile(network: keras.Model, config: TrainingConfig) -> None:
    loss = {
        "compound": compound_loss,
        "tversky": tversky_loss,
        "focal_tversky": lambda: tversky_loss(gamma=4 / 3),
    }[config.loss]()
    optimizer = keras.optimizers.AdamW(
        learning_rate=config.learning_rate, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    network.compile(optimizer=optimizer, loss=loss)


def _rate(config: TrainingConfig, progress: float, epoch: int) -> float:
    """Learning rate at a share of the run."""
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "paper":
        return config.learning_rate * 0.95**epoch
    warm = 0.03
    if progress < warm:
        return config.learning_rate * (0.05 + 0.95 * progress / warm)
    along = (progress - warm) / (1 - warm)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(along, 1.0))))


def _run(
    network: keras.Model,
    sampler: SectionSampler,
    held_out: list[tuple[NDArray[np.float32], NDArray[np.int32]]],
    config: TrainingConfig,
    taxonomy: Taxonomy,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> tuple[list[dict[str, Any]], list[NDArray[Any]]]:
    """Train epoch by epoch; returns the history and the weights worth keeping."""
    start = time.monotonic()
    limit = None if config.max_minutes is None else config.max_minutes * 60
    history: list[dict[str, Any]] = []
    best, best_score = network.get_weights(), -1.0
    for epoch in range(config.epochs):
        began = time.monotonic()
        steps: list[tuple[float, float]] = []
        batches = sampler.batches(epoch * config.steps_per_epoch, config.steps_per_epoch)
        steps.extend(_steps(network, batches, config, epoch, start, limit))
        seconds = time.monotonic() - began
        mean_loss = float(np.mean([loss for loss, _ in steps]))
        if not math.isfinite(mean_loss):
            if not history:
                raise TrainingDiverged("the loss is not finite: lower the learning rate, or train in float32")
            break
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "epochs": config.epochs,
            "loss": mean_loss,
            "learning_rate": steps[-1][1],
            "seconds": seconds,
            "sections_per_second": len(steps) * config.batch_size / seconds,
        }
        if held_out:
            row["iou"], row["mean_iou"] = _score(network, held_out, taxonomy)
        history.append(row)
        score = row.get("mean_iou", float(epoch)) or 0.0
        if score >= best_score:
            best, best_score = network.get_weights(), score
        if on_epoch is not None:
            on_epoch(row)
        if limit is not None and time.monotonic() - start >= limit:
            break
    return history, best


def _steps(
    network: keras.Model,
    batches: Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]],
    config: TrainingConfig,
    epoch: int,
    start: float,
    limit: float | None,
) -> Iterator[tuple[float, float]]:
    """Loss and learning rate of each step of an epoch; ends early at the time limit or a loss that is no number."""
    total = config.epochs * config.steps_per_epoch
    for number, (images, labels) in enumerate(batches):
        elapsed = 0.0 if limit is None else (time.monotonic() - start) / limit
        rate = _rate(config, max((epoch * config.steps_per_epoch + number) / total, elapsed), epoch)
        network.optimizer.learning_rate = rate
        # train_on_batch returns the running mean since the metrics were reset; the step's own loss is wanted here.
        network.reset_metrics()
        loss = float(np.asarray(network.train_on_batch(images, labels)).ravel()[0])
        yield loss, rate
        if not math.isfinite(loss) or elapsed >= 1:
            return


def _score(
    network: keras.Model, batches: list[tuple[NDArray[np.float32], NDArray[np.int32]]], taxonomy: Taxonomy
) -> tuple[dict[str, float | None], float | None]:
    """IoU of every class over all batches together, and the mean of the foreground classes that occur."""
    classes = len(taxonomy)
    pairs = np.zeros(classes * classes, dtype=np.int64)
    for images, labels in batches:
        predicted = np.argmax(network.predict_on_batch(images), axis=-1)
        pairs += np.bincount((labels * classes + predicted).ravel(), minlength=classes * classes)
    table = pairs.reshape(classes, classes)
    hit = np.diag(table)
    union = table.sum(axis=0) + table.sum(axis=1) - hit
    iou = {name: float(h / u) if u else None for name, h, u in zip(taxonomy.names, hit, union, strict=True)}
    known = [iou[c.name] for c in taxonomy.foreground if iou[c.name] is not None]
    return iou, float(np.mean(known)) if known else None


def _in_float32(architecture: dict[str, Any], weights: list[NDArray[Any]]) -> keras.Model:
    with precision("float32"):
        network = build_unet(**architecture)
    network.set_weights(weights)
    return network
