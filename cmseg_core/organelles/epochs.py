"""The epochs of a training: steps, learning rate, scores, and the weights worth keeping."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from cmseg_core.errors import InputError
from cmseg_core.organelles.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from cmseg_core.organelles.dataset import Batch, SectionSampler
from cmseg_core.organelles.losses import compound_loss, tversky_loss
from cmseg_core.organelles.optimizer import build_optimizer
from cmseg_core.schema import Taxonomy

if TYPE_CHECKING:
    from cmseg_core.organelles.training import TrainingConfig


KEEP_SECONDS = 300.0
"""In an epoch that takes longer, the state is kept so often; and after every epoch."""
RETREATS = 3
"""How often a training goes back to an earlier state before it gives up."""


class TrainingDiverged(InputError):
    """The loss stopped being a number, again and again."""


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


@dataclass(frozen=True)
class Listener:
    """Whom a training tells how it goes on; see :func:`cmseg_core.organelles.training.train`."""

    on_epoch: Callable[[dict[str, Any]], None] | None = None
    on_step: Callable[[dict[str, Any]], None] | None = None
    say: Callable[[str], None] | None = None


def run_epochs(
    network: keras.Model,
    sampler: SectionSampler,
    held_out: list[Batch],
    config: TrainingConfig,
    taxonomy: Taxonomy,
    listener: Listener | None = None,
    checkpoint: Path | None = None,
) -> tuple[list[dict[str, Any]], list[NDArray[Any]]]:
    """Train epoch by epoch; returns the history and the weights worth keeping.

    Where a loss or the weights are not finite the training goes back to its last good state, with half the learning
    rate, up to `RETREATS` times.

    Parameters
    ----------
    network : keras.Model
        Compiled.
    sampler : SectionSampler
    held_out : list of Batch
        Scored after each epoch; may be empty.
    config : TrainingConfig
    taxonomy : Taxonomy
    listener : Listener, optional
    checkpoint : Path, optional
        File for the state of the training, from which it goes on where the file is there.

    Raises
    ------
    TrainingDiverged
        Where going back has not helped.
    """
    run = _Run(network, config, listener or Listener(), checkpoint)
    while not run.over():
        row = run.take_steps(sampler)
        if row is None:
            run.go_back()
            continue
        score = float(run.progress.epoch)
        if held_out:
            row["iou"], row["mean_iou"] = score_sections(network, held_out, taxonomy)
            score = row["mean_iou"] or 0.0
        run.close_epoch(row, score)
    return run.progress.history, run.best


class _Run:
    """A training on its way."""

    def __init__(
        self, network: keras.Model, config: TrainingConfig, listener: Listener, checkpoint: Path | None
    ) -> None:
        self.network, self.config, self.listener, self.checkpoint = network, config, listener, checkpoint
        self.progress, self.best = Progress(), _weights(network)
        self.began = self.epoch_began = self.kept_at = time.monotonic()
        network.optimizer.build(network.trainable_variables)
        if checkpoint is not None and checkpoint.exists():
            self._restore(load_checkpoint(checkpoint))
            self._say(f"taking up the training at {self._place()}")
            self.began -= self.progress.seconds
            self.epoch_began -= self.progress.epoch_seconds
        self.good = self._state()

    def over(self) -> bool:
        """Whether the epochs, the time or the patience is at its end."""
        progress, config = self.progress, self.config
        impatient = config.patience is not None and progress.epoch - progress.best_epoch >= config.patience
        late = config.max_minutes is not None and progress.epoch > 0 and self._share_of_time() >= 1
        return progress.epoch >= config.epochs or late or impatient

    def take_steps(self, sampler: SectionSampler) -> dict[str, Any] | None:
        """Take what steps are left of an epoch, fewer at the time limit; what to tell of it, or None to go back."""
        progress, each = self.progress, self.config.steps_per_epoch
        done = len(progress.losses)
        for images, labels in sampler.batches(progress.epoch * each + done, each - done):
            time_share = self._share_of_time()
            share = max((progress.epoch * each + len(progress.losses)) / (self.config.epochs * each), time_share)
            rate = learning_rate(self.config, share, progress.epoch) / 2**progress.retreats
            self.network.optimizer.learning_rate = rate
            # train_on_batch returns the running mean since the metrics were reset; the step's own loss is wanted here.
            self.network.reset_metrics()
            loss = float(np.asarray(self.network.train_on_batch(images, labels)).ravel()[0])
            if not math.isfinite(loss):
                return None
            progress.losses.append(loss)
            self._tell_step(share)
            if time_share >= 1:
                break
            if time.monotonic() - self.kept_at > KEEP_SECONDS and not self._keep():
                return None
        if not self._state().finite():
            return None
        seconds = time.monotonic() - self.epoch_began
        return {
            "epoch": progress.epoch + 1,
            "epochs": self.config.epochs,
            "loss": float(np.mean(progress.losses)),
            "learning_rate": float(np.asarray(self.network.optimizer.learning_rate)),
            "seconds": seconds,
            "sections_per_second": len(progress.losses) * self.config.batch_size / seconds,
        }

    def close_epoch(self, row: dict[str, Any], score: float) -> None:
        """Enter a finished epoch and keep the state after it."""
        progress = self.progress
        progress.history.append(row)
        progress.losses = []
        if score >= progress.best_score:
            self.best, progress.best_score, progress.best_epoch = _weights(self.network), score, progress.epoch
        if self.listener.on_epoch is not None:
            self.listener.on_epoch(row)
        self.epoch_began = time.monotonic()
        self._keep()

    def go_back(self) -> None:
        """Return to the last good state with a lower learning rate."""
        retreats = self.progress.retreats + 1
        if retreats > RETREATS:
            reason = f"the loss is not finite, {RETREATS} times after going back with half the learning rate"
            raise TrainingDiverged("training", reason, "set a lower learning_rate, or precision: float32")
        self._restore(self.good)
        self.progress.retreats = retreats
        self._say(f"the loss is not finite: going back to {self._place()}, with half the learning rate")

    def _keep(self) -> bool:
        """Keep the state in memory and in the file; False, and nothing kept, where a number is not finite."""
        state = self._state()
        if not state.finite():
            return False
        self.good, self.kept_at = state, time.monotonic()
        if self.checkpoint is not None:
            try:
                save_checkpoint(state, self.checkpoint)
            except OSError as error:  # a full disk, say: no reason to lose what has been learnt
                self._say(f"{self.checkpoint}: the state of the training could not be kept ({error.strerror})")
        return True

    def _state(self) -> Checkpoint:
        self.progress.seconds = time.monotonic() - self.began
        self.progress.epoch_seconds = time.monotonic() - self.epoch_began
        optimizer = [np.array(keras.ops.convert_to_numpy(one)) for one in self.network.optimizer.variables]
        return Checkpoint(copy.deepcopy(self.progress), _weights(self.network), optimizer, self.best)

    def _restore(self, state: Checkpoint) -> None:
        self.progress, self.best = copy.deepcopy(state.progress), state.best
        self.network.set_weights(state.weights)
        for variable, value in zip(self.network.optimizer.variables, state.optimizer, strict=True):
            variable.assign(value)

    def _place(self) -> str:
        progress = self.progress
        over = progress.epoch >= self.config.epochs
        return "its end" if over else f"epoch {progress.epoch + 1}, step {len(progress.losses) + 1}"

    def _share_of_time(self) -> float:
        limit = self.config.max_minutes
        return 0.0 if limit is None else (time.monotonic() - self.began) / (limit * 60)

    def _tell_step(self, share: float) -> None:
        if self.listener.on_step is None:
            return
        progress, config = self.progress, self.config
        row = {"epoch": progress.epoch + 1, "epochs": config.epochs, "step": len(progress.losses)}
        self.listener.on_step({**row, "steps": config.steps_per_epoch, "loss": progress.losses[-1], "share": share})

    def _say(self, line: str) -> None:
        if self.listener.say is not None:
            self.listener.say(line)


def _weights(network: keras.Model) -> list[NDArray[Any]]:
    # Copies: with some backends an array shares its memory with the network.
    return [np.array(weight) for weight in network.get_weights()]


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
