"""What all stages share: how they are keyed, retried and found again.

Completion lives in the store, under the stage's key, where any process on any machine sees it. Prefect therefore
caches and persists nothing: a second record of what is done could only disagree with the first.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import httpx
import zarr
from obstore import exceptions as failures
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.flow_engine import FlowRunTimeoutError
from prefect.task_engine import TaskRunTimeoutError
from prefect.tasks import Task, exponential_backoff
from pydantic import BaseModel

import cmseg_core
from cmseg_core.errors import StoreRefusal
from cmseg_core.storage.stages import StageOutput, StageRef, stage_key
from tasks.request import StoreAddress

HOUR = 3600
SLAB = 64
"""Sections that a stage holds at a time, and the depth of a shard of the volumes it writes."""
_PASSING = (
    StoreRefusal,
    ConcurrencySlotAcquisitionError,
    failures.GenericError,
    failures.JoinError,
    failures.PermissionDeniedError,
    failures.UnauthenticatedError,
    httpx.HTTPError,
)
_LASTING = (
    FileExistsError,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    # What takes longer than a step may would do so again.
    FlowRunTimeoutError,
    TaskRunTimeoutError,
)
_LASTING_NUMBERS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EFBIG}


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may help: for a failing disk or service, or one whose keys are not right; never for bad
    input or a fault of ours.

    What zarr reads and writes comes with the errors of obstore, and Prefect's own calls with those of httpx.
    """
    if isinstance(error, OSError):
        return not isinstance(error, _LASTING) and error.errno not in _LASTING_NUMBERS
    return isinstance(error, _PASSING)


def is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a task's failure may pass."""
    try:
        state.result()
    except BaseException as error:
        return may_pass(error)
    return False


RESUMABLE: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
"""Options of every stage's task. No tags: before a task that has some, Prefect asks its server about their limits."""


def stage_output(
    store: StoreAddress,
    stage: str,
    inputs: Mapping[str, str],
    config: Mapping[str, Any] | BaseModel,
    revision: int,
) -> StageOutput:
    """Where the output of a stage stands, or will.

    Parameters
    ----------
    store : StoreAddress
    stage : str
    inputs : mapping of str to str
        Role to key or content hash of everything that the stage reads.
    config : mapping or model
        The settings that the stage looks at.
    revision : int
        Of the stage's own code, raised whenever its output changes within a version of the package.
    """
    code = f"{cmseg_core.__version__}+{revision}"
    if store.again:
        inputs = {**inputs, "again": str(store.again)}
    return StageOutput(store.open(), stage, stage_key(stage, inputs, config, code))


def opened(reference: StageRef, store: StoreAddress) -> StageOutput:
    """The output that a former stage left."""
    return StageOutput.from_reference(reference, store.open())


def volume_shape(array: zarr.Array) -> tuple[int, int, int]:
    """Sections, rows and columns of a stored volume."""
    depth, height, width = array.shape
    return depth, height, width
