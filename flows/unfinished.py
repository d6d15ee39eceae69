"""Trainings that are not finished: what each has come to lies in a folder of the workspace until it is."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmseg_core.errors import InputError


class UnfinishedTraining:
    """The folder of a training.

    Parameters
    ----------
    folder : Path
        Named by everything that decides the training's outcome.

    Attributes
    ----------
    checkpoint : Path
        State of the training.
    model : Path
        What came out of it, once it has ended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint.npz"
        self.model = folder / "model.keras"

    def read(self, name: str) -> dict[str, Any] | None:
        """A document that was written earlier, or None."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Keep a small document, whole or not at all."""
        staged = self.folder / f".{name}.partial"
        staged.write_text(json.dumps(document), encoding="utf-8")
        staged.replace(self.folder / f"{name}.json")

    def clear(self) -> None:
        """Forget everything; the folder stays."""
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                path.unlink()

    def remove(self) -> None:
        """Remove the folder: the training is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


_LOCK = "lock"


@contextmanager
def unfinished(workspace: Path, key: str) -> Iterator[UnfinishedTraining]:
    """Open the folder of a training, made where absent, for this process alone.

    Parameters
    ----------
    workspace : Path
    key : str
        From :func:`cmseg_core.organelles.checkpoint.training_key`.

    Raises
    ------
    InputError
        Where another process is at this training, or the folder cannot be written.
    """
    place = UnfinishedTraining(workspace / "trainings" / key)
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(place.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        reason = f"cannot be made ({error.strerror})"
        raise InputError(place.folder, reason, "set CMSEG_WORKSPACE to a folder that can be written") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InputError("training", "is under way in another process", "wait for it, or give another --seed") from None
    try:
        yield place
    finally:
        os.close(lock)
