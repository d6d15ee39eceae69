"""Tables of arrays as one object each."""

from __future__ import annotations

import io
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def pack(table: Any) -> bytes:
    """A dataclass whose fields are arrays, as the bytes of an ``.npz`` file."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **{f.name: getattr(table, f.name) for f in fields(table)})
    return file.getvalue()


def unpack(kind: type[T], data: bytes) -> T:
    """The table that :func:`pack` made; nothing is unpickled."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return kind(**{f.name: file[f.name] for f in fields(kind)})  # type: ignore[arg-type]
