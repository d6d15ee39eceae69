"""The environment of a process that runs flows: set before Prefect and the numeric libraries are imported."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile

from cmseg_core.errors import InputError
from cmseg_core.schema import Workspace

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)
_LEAST_FREE = 64_000_000
"""Bytes without which not even Prefect's database has room."""
_WAITING = {
    # By default a thread that waits for the others of its team keeps its core busy for a while. Beside any
    # other work on the machine that costs far more than it saves: finding cells took several times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "20000",
}
_GPU = {
    # By default both take all memory of a GPU, where PyTorch and other workers need some, too.
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    # The server of a busy machine takes longer to start than the 20 s it is given by default.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # What its server answers while its database is started again; its client would give up at once.
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
    # By default every 180 s; a run that was not heard of for 90 s is taken for crashed (deployments/automations.yaml).
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
}


def prepare(workspace: Workspace, *, training: bool = False) -> None:
    """Set what the libraries read from the environment when they are imported; what is set already stays.

    Without ``PREFECT_API_URL`` flows run against a server of this process alone, whose database lies in the workspace.

    Parameters
    ----------
    workspace : Workspace
    training : bool
        TensorFlow then runs operations side by side as well as each on several cores. On two cores a training step took
        0.7 times as long; cells that are segmented side by side keep the cores busy as it is.

    Raises
    ------
    InputError
        Where the workspace cannot be written.
    """
    home = workspace.workspace / "prefect"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):  # a folder that is there may lie on a disk that is read-only
            pass
        free = shutil.disk_usage(home).free
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise InputError(home, reason, "set CMSEG_WORKSPACE to a folder that can be written") from error
    if free < _LEAST_FREE:
        reason = f"lies on a disk with only {free / 1e6:.0f} MB left"
        raise InputError(workspace.workspace, reason, "make room, or set CMSEG_WORKSPACE to a folder on another disk")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(workspace.threads or cores)
    settings = dict.fromkeys(_THREADS, threads) | {"TF_NUM_INTEROP_THREADS": threads if training else "1"}
    settings |= _WAITING | _GPU | _QUIET | {"PREFECT_HOME": str(home), "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    logging.getLogger("cmseg").setLevel(logging.INFO)  # for the pages of runs, where Prefect is told to keep it
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, PlainErrors) for f in logger.filters):
            logger.addFilter(PlainErrors())


class PlainErrors(logging.Filter):
    """Leaves bad input to whoever called the flow, who says it in one line: no trace of the code that found it.

    Nor does it repeat for every cell that a timeout takes effect only between two calls into a numeric library. A batch
    of sections is one such call and takes seconds, so that is soon enough.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, InputError) and "running in a worker thread" not in str(record.msg)
