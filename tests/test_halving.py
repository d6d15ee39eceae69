"""Batches that are too large for the memory are halved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmseg_core.halving import in_halves, is_out_of_memory


class Machine:
    """Doubles batches of up to so many items, and complains of larger ones."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error, self.sizes = room, error, []

    def __call__(self, batch):
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        return 2 * batch


OUT_OF_MEMORY = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes."),
    ValueError("OOM when allocating tensor with shape[32,256,256,64] and type float"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_parts_in_order_and_no_smaller_than_needed(error: Exception) -> None:
    machine, batch = Machine(2, error), np.arange(7)
    found = in_halves(machine, batch)
    assert np.array_equal(np.concatenate(found), 2 * batch)
    assert machine.sizes == [7, 3, 1, 2, 4, 2, 2]


def test_enough_memory_is_one_call() -> None:
    machine = Machine(8, MemoryError())
    (found,) = in_halves(machine, torch.arange(8))
    assert found.tolist() == list(range(0, 16, 2)) and machine.sizes == [8]


def test_a_single_item_that_does_not_fit_is_told() -> None:
    with pytest.raises(MemoryError, match="does not suffice for one section: CUDA out of memory"):
        in_halves(Machine(0, OUT_OF_MEMORY[1]), np.arange(4))


def test_other_errors_are_not_taken_for_it() -> None:
    machine = Machine(2, ValueError("shapes do not fit"))
    with pytest.raises(ValueError, match="shapes"):
        in_halves(machine, np.arange(4))
    assert machine.sizes == [4]


def test_a_real_library_that_runs_out_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError):
        np.empty(1 << 55, np.uint8)
