"""Networks on a GPU: PyTorch in a process of its own, and the processor where the GPU has no room.

TensorFlow and PyTorch bring CUDA libraries of their own, and each keeps the memory of a GPU that it once took. So what
PyTorch does happens in another process, which ends when that is done. Without a GPU all of it happens in this process.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Lock, Thread
from typing import Any, TypeVar

from cmseg_core.halving import is_out_of_memory
from cmseg_core.machine import has_gpu

log = logging.getLogger("cmseg.memory")
Found = TypeVar("Found")

_NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
_pool: ProcessPoolExecutor | None = None
_GUARD = Lock()


def on_gpu(work: Callable[..., Found], *given: Any, apart: bool = False) -> Found:
    """Let a network work on the GPU and, where that has no room for it, on the processor.

    Parameters
    ----------
    work : callable
        A function of a module, which other processes can import.
    *given
        Its arguments, which are handed to another process: arrays, numbers, settings.
    apart : bool
        In a process of its own, which lives until :func:`leave_gpu`.

    Returns
    -------
    object
        What `work` gave.

    Raises
    ------
    MemoryError
        Where the processor does not suffice either.
    """
    # A worker of Dask may not begin processes.
    if not has_gpu() or multiprocessing.current_process().daemon:
        return work(*given)
    try:
        return _answer(_lasting(), work, given) if apart else work(*given)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("the GPU has no room for this, the processor takes it over: %s", str(error).partition("\n")[0])
    with _process(_NO_GPU) as processor:
        return _answer(processor, work, given)


def leave_gpu() -> None:
    """End the process in which :func:`on_gpu` worked apart: all that it took of the GPU is free again."""
    global _pool  # noqa: PLW0603
    with _GUARD:
        pool, _pool = _pool, None
    if pool is not None:
        pool.shutdown()


def _lasting() -> ProcessPoolExecutor:
    global _pool  # noqa: PLW0603
    with _GUARD:
        if _pool is None:
            _pool = _process({})
        return _pool


def _process(environment: dict[str, str]) -> ProcessPoolExecutor:
    # Not forked: what CUDA and the threads of the libraries hold does not survive that.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(environment,))


def _answer(pool: ProcessPoolExecutor, work: Callable[..., Found], given: tuple[Any, ...]) -> Found:
    try:
        return pool.submit(work, *given).result()
    except BrokenProcessPool as error:
        leave_gpu()
        raise MemoryError("the process of a network was ended, as happens where memory is used up") from error


def _begin(environment: dict[str, str]) -> None:
    """In the new process, before it imports any network."""
    os.environ.update(environment)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot tell this process to end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
