"""What stages share: which failures are worth another attempt, and what decides a key."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import PermissionDeniedError
from prefect.task_engine import TaskRunTimeoutError

from cmseg_core.errors import InputError, StoreRefusal
from tasks.request import StoreAddress


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionError("the service went away"), True),
        (OSError("input/output error"), True),
        (TimeoutError("no answer"), True),
        (StoreRefusal("s3://cmseg", "access was refused", "check the key"), True),
        (PermissionDeniedError("a chunk of an array"), True),
        (InputError("stack.tif", "is damaged", "export it again"), False),
        (FileNotFoundError("stack.tif"), False),
        (FileExistsError("a file where a folder is needed"), False),
        (OSError(errno.ENAMETOOLONG, "File name too long"), False),
        (OSError(errno.EIO, "Input/output error"), True),
        (TaskRunTimeoutError("exceeded timeout of 3600 second(s)"), False),
        (PermissionError("stack.tif"), False),
        (ValueError("a fault of ours"), False),
    ],
)
def test_only_passing_failures_are_tried_again(error: Exception, again: bool) -> None:
    from prefect.states import Failed

    from tasks.stage import is_transient

    state: Any = Failed(data=error)
    nothing: Any = None
    assert is_transient(nothing, nothing, state) is again


def test_key_follows_inputs_settings_and_revision(tmp_path: Path) -> None:
    from tasks.stage import stage_output

    store = StoreAddress(uri=str(tmp_path))
    keys = {
        stage_output(store, "ingest", {"source": source}, {"limit": limit}, revision).key
        for source in ("a", "b")
        for limit in (1, 2)
        for revision in (1, 2)
    }
    assert len(keys) == 8
    assert stage_output(store, "ingest", {"source": "a"}, {"limit": 1}, 1).key in keys
