"""The epochs of a training: steps, learning rate, scores, and the weights worth keeping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from cmseg_core.organelles.dataset import Batch, SectionSampler
from cmseg_core.organelles.losses import compound_loss, tversky_loss
from cmseg_core.organelles.optimizer import build_optimizer
from cmseg_core.schema import Taxonomy

if TYPE_CHECKING:
    from cmseg_core.organelles.training import TrainingConfig


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number before any epoch was worth keeping."""


def compile_network(network: keras.Model, config: TrainingConfig) -> None:
    """Give a network the loss and the optimiser of a training."""
    loss = {
        "compound": compound_loss,
        "tversky": tversky_loss,
        "focal_tversky": lambda: tversky_loss(gamma=4 / 3),
    }[config.loss]()
    optimizer = build_optimizer(config.optimizer, config.learning_rate, config.weight_decay, config.clip_norm)
    network.compile(optimizer=optimizer, loss=loss)


def learning_rate(config: TrainingConfig, progress: float, epoch: int) -> float:
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


def run_epochs(
    network: keras.Model,
    sampler: SectionSampler,
    held_out: list[Batch],
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
            row["iou"], row["mean_iou"] = score_sections(network, held_out, taxonomy)
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
    batches: Iterator[Batch],
    config: TrainingConfig,
    epoch: int,
    start: float,
    limit: float | None,
) -> Iterator[tuple[float, float]]:
    """Loss and learning rate of each step of an epoch; ends early at the time limit or a loss that is no number."""
    total = config.epochs * config.steps_per_epoch
    for number, (images, labels) in enumerate(batches):
        elapsed = 0.0 if limit is None else (time.monotonic() - start) / limit
        rate = learning_rate(config, max((epoch * config.steps_per_epoch + number) / total, elapsed), epoch)
        network.optimizer.learning_rate = rate
        # train_on_batch returns the running mean since the metrics were reset; the step's own loss is wanted here.
        network.reset_metrics()
        loss = float(np.asarray(network.train_on_batch(images, labels)).ravel()[0])
        yield loss, rate
        if not math.isfinite(loss) or elapsed >= 1:
            return


def score_sections(
    network: keras.Model, batches: list[Batch], taxonomy: Taxonomy
) -> tuple[dict[str, float | None], float | None]:
    """IoU of every class over all batches together, and the mean of the foreground classes that the labels show.

    A class that is found but not there has an IoU of 0, which stays out of the mean: a single voxel of it would weigh
    as much as all that is right of another class.
    """
    classes = len(taxonomy)
    pairs = np.zeros(classes * classes, dtype=np.int64)
    for images, labels in batches:
        predicted = np.argmax(network.predict_on_batch(images), axis=-1)
        pairs += np.bincount((labels * classes + predicted).ravel(), minlength=classes * classes)
    table = pairs.reshape(classes, classes)
    hit = np.diag(table)
    union = table.sum(axis=0) + table.sum(axis=1) - hit
    iou = {name: float(h / u) if u else None for name, h, u in zip(taxonomy.names, hit, union, strict=True)}
    shown = table.sum(axis=1)
    known = [score for c in taxonomy.foreground if shown[c.id] and (score := iou[c.name]) is not None]
    return iou, float(np.mean(known)) if known else None
