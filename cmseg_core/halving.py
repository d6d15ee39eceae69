"""Smaller batches where the memory of the machine, or of its GPU, does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

log = logging.getLogger("cmseg.memory")

_SIGNS = ("RESOURCE_EXHAUSTED", "OOM when allocating", "out of memory", "Out of memory", "can't allocate memory")
"""What TensorFlow, JAX and PyTorch, on a processor and on a GPU, say in errors that are no MemoryError."""


class Batch(Protocol):
    """An array or a tensor."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Self: ...


BatchT = TypeVar("BatchT", bound=Batch)
Found = TypeVar("Found")


def in_halves(work: Callable[[BatchT], Found], batch: BatchT) -> Sequence[Found]:
    """Do some work on a batch; where memory does not suffice, on its halves, their halves, and so on.

    Parameters
    ----------
    work : callable
        Treats every item of a batch by itself.
    batch : array or tensor
        Items along the first axis.

    Returns
    -------
    sequence
        What `work` gave for each part of the batch, in order: one, where memory suffices.

    Raises
    ------
    MemoryError
        Where it does not suffice for a single item.
    """
    try:
        return [work(batch)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # Not in the handler, where the traceback would keep what the failed attempt had taken.
    if len(batch) < 2:
        raise MemoryError(f"memory does not suffice for one section: {reason}")
    log.warning("memory does not suffice for %d sections at once: each half by itself", len(batch))
    middle = len(batch) // 2
    return [*in_halves(work, batch[:middle]), *in_halves(work, batch[middle:])]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, whichever library raised it."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)
