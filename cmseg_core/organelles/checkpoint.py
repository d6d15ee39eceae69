"""The state of an unfinished training: in memory, to go back to, and in a file, to be taken up after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

import cmseg_core
from cmseg_core.errors import InputError
from cmseg_core.organelles.dataset import LabelledCell
from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.schema import PreprocessConfig, Taxonomy

if TYPE_CHECKING:
    from cmseg_core.organelles.training import TrainingConfig

FORMAT = 1
_PROGRESS = "progress"
_GROUPS = ("weights", "optimizer", "best")


@dataclass
class Progress:
    """How far a training is.

    Attributes
    ----------
    losses : list of float
        Of the steps done in the epoch at hand.
    seconds, epoch_seconds : float
        Of all work so far, and of that on the epoch at hand.
    history : list of dict
        One row for each finished epoch.
    best_score : float
    best_epoch : int
        Finished epochs when the best weights were kept.
    retreats : int
        How often the training went back to an earlier state; each halves the learning rate.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_score: float = -1.0
    best_epoch: int = 0
    retreats: int = 0

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training at one moment: with this, its settings and its cells it goes on as if nothing had happened.

    Attributes
    ----------
    progress : Progress
    weights : list of ndarray
        Of the network, running statistics included.
    optimizer : list of ndarray
        Every variable of the optimiser.
    best : list of ndarray
        Weights of the network after the best epoch so far.
    """

    progress: Progress
    weights: list[NDArray[Any]]
    optimizer: list[NDArray[Any]]
    best: list[NDArray[Any]]

    def finite(self) -> bool:
        """Whether every number is one."""
        return all(np.isfinite(array).all() for array in (*self.weights, *self.optimizer))


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint as one ``.npz`` file without pickles, by way of a temporary name: whole or not at all."""
    progress = json.dumps({"format": FORMAT, **asdict(checkpoint.progress)}, allow_nan=False)
    arrays = {_PROGRESS: np.frombuffer(progress.encode(), dtype=np.uint8)}
    for group in _GROUPS:
        arrays |= {f"{group}/{number:04}": array for number, array in enumerate(getattr(checkpoint, group))}
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.partial")
    with staged.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote.

    Raises
    ------
    InputError
        Where the file is damaged or of another format.
    """
    mend = "remove it, or start the training afresh with --fresh"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            facts = json.loads(content[_PROGRESS].tobytes())
            if facts.pop("format") != FORMAT:
                raise InputError(path, f"is not of format {FORMAT}", mend)
            names = sorted(content.files)
            groups = [[content[name] for name in names if name.startswith(f"{group}/")] for group in _GROUPS]
            return Checkpoint(Progress(**facts), *groups)
    except (OSError, EOFError, KeyError, TypeError, AttributeError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(path, f"is a damaged checkpoint ({error})", mend) from error


def training_key(
    cells: Sequence[LabelledCell],
    validation: Sequence[LabelledCell],
    config: TrainingConfig,
    taxonomy: Taxonomy,
    preprocess: PreprocessConfig,
    initial: OrganelleModel | None,
) -> str:
    """Name of a training: the SHA-256 of everything that decides its outcome.

    That is the content and order of the cells, the settings, classes and preparation of images, the weights it starts
    from, and the versions of cmseg, Keras and its backend.

    Returns
    -------
    str
        In hexadecimal.
    """
    facts = {
        "config": config.model_dump(mode="json"),
        "taxonomy": taxonomy.model_dump(mode="json"),
        "preprocess": preprocess.model_dump(mode="json"),
        "code": [cmseg_core.__version__, FORMAT, keras.__version__, keras.backend.backend()],
        "cells": [_content(cell) for cell in cells],
        "validation": [_content(cell) for cell in validation],
        "initial": None if initial is None else [initial.metadata.get("architecture"), *_digests(_weights(initial))],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _weights(model: OrganelleModel) -> list[NDArray[Any]]:
    return model.network.get_weights()


def _content(cell: LabelledCell) -> list[Any]:
    arrays = [cell.image, cell.labels, *([] if cell.others is None else [cell.others])]
    return [cell.name, cell.stage, cell.field, cell.voxel_size.zyx, *_digests(arrays)]


def _digests(arrays: Iterable[NDArray[Any]]) -> list[str]:
    return [
        f"{array.dtype}{array.shape}{hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()}" for array in arrays
    ]
