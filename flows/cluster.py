"""Flows on a Dask cluster: the tasks of one acquisition spread over many machines."""

from __future__ import annotations

from typing import Any

from cmseg_core.errors import InputError


def on_cluster(work: Any, scheduler: str | None) -> Any:
    """A flow whose mapped tasks run on the workers of a Dask cluster; the flow itself where there is no scheduler.

    Parameters
    ----------
    work : Flow
    scheduler : str, optional
        Address, for example ``tcp://host:8786``. Its workers need cmseg of the same version, the same store and, for
        models that are files, the same paths.

    Raises
    ------
    InputError
        Where the extra is not installed, or no scheduler answers.
    """
    if scheduler is None:
        return work
    try:
        from distributed import Client
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise InputError("CMSEG_DASK", "needs Dask, which is not installed", "pip install 'cmseg[dask]'") from error
    try:
        Client(scheduler, timeout="10s", set_as_default=False).close()
    except (OSError, ValueError) as error:
        reason = "no Dask scheduler answers there"
        mend = "start one with `dask scheduler`, and workers with `dask worker`"
        raise InputError(scheduler, reason, mend) from error
    return work.with_options(task_runner=DaskTaskRunner(address=scheduler))
