"""The truth that comes with an acquisition: its label stacks, and the stages of its cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from cmseg_core.acquisition.reader import read_labels
from cmseg_core.errors import InputError
from cmseg_core.schema import Stage, first_problem


def stages_beside(stack: Path) -> dict[int, Stage]:
    """Stages of the true cells, from the ``acquisition.json`` beside a stack or in its folder; empty without one."""
    sidecar = (stack if stack.is_dir() else stack.parent) / "acquisition.json"
    if not sidecar.is_file():
        return {}
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        return stages_of(content)
    except ValidationError as error:
        raise InputError(
            sidecar, f"has damaged stages ({first_problem(error)})", 'write {"stages": {"1": 2}}'
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(sidecar, f"cannot be read ({error})", "write JSON") from error


def stages_of(content: Mapping[str, Any]) -> dict[int, Stage]:
    """Stages that the content of an ``acquisition.json`` states, at its top or among its metadata."""
    stated = content.get("stages") or (content.get("metadata") or {}).get("stages") or {}
    return TypeAdapter(dict[int, Stage]).validate_python(stated)


def labels_sha256(path: str, shape: tuple[int, int, int]) -> str:
    """Hash of the labels of a stack, which must have this shape; InputError where it cannot be used."""
    labels = read_labels(path, shape)
    digest = hashlib.sha256(f"{labels.dtype.str} {labels.shape}".encode())
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
