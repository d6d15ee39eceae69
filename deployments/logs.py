"""Logs of services that run for years keep to a bounded size."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LARGEST = 20_000_000
"""Bytes of a log beyond which it is begun anew; the part before stays beside it until the next time."""


def rotate(log: Path, largest: int = LARGEST) -> bool:
    """Begin a log anew where it has grown too large; ``.1`` is added to the name of what it held.

    The service goes on to write to the same file, which it must have opened for appending. What it writes between the
    copy and the cut is lost.

    Parameters
    ----------
    log : path
    largest : int
        Bytes.
    """
    if not log.is_file() or log.stat().st_size <= largest:
        return False
    copy = log.with_name(f".{log.name}.partial")
    with os.fdopen(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target, log.open("rb") as held:
        shutil.copyfileobj(held, target)
    copy.replace(log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)
    return True
