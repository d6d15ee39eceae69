"""Networks beside a GPU, which is made believe here: in a process of their own, and on the processor in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tasks import gpu

KEPT_OFF = "-1"


@pytest.fixture
def beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield
    gpu.leave_gpu()


def process() -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def needs_room(sections: int) -> str:
    if os.environ.get("CUDA_VISIBLE_DEVICES") != KEPT_OFF:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    return f"{sections} sections on the processor"


def is_ended(sections: int) -> str:
    if os.environ.get("CUDA_VISIBLE_DEVICES") != KEPT_OFF:
        os.kill(os.getpid(), signal.SIGKILL)
    return needs_room(sections)


def is_always_ended() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_wrong() -> None:
    raise ValueError("two cells have the same number")


def test_without_a_gpu_all_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    assert gpu.on_gpu(process, apart=True)[0] == os.getpid()
    with pytest.raises(RuntimeError, match="out of memory"):
        gpu.on_gpu(needs_room, 3)


def test_pytorch_has_a_process_of_its_own_until_it_is_left(beside_a_gpu: None) -> None:
    first, visible = gpu.on_gpu(process, apart=True)
    assert first != os.getpid() and visible is None
    assert gpu.on_gpu(process, apart=True)[0] == first, "the model is loaded once"
    assert gpu.on_gpu(process)[0] == os.getpid()
    gpu.leave_gpu()
    assert not psutil.pid_exists(first)
    assert gpu.on_gpu(process, apart=True)[0] not in {first, os.getpid()}


@pytest.mark.parametrize("apart", [False, True])
def test_what_has_no_room_on_the_gpu_is_done_by_the_processor(beside_a_gpu: None, apart: bool) -> None:
    assert gpu.on_gpu(needs_room, 3, apart=apart) == "3 sections on the processor"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_process_that_the_machine_ends_is_followed_by_another(beside_a_gpu: None) -> None:
    assert gpu.on_gpu(is_ended, 3, apart=True) == "3 sections on the processor"
    with pytest.raises(MemoryError, match="memory is used up"):
        gpu.on_gpu(is_always_ended, apart=True)
    assert gpu.on_gpu(process, apart=True)[0] != os.getpid()


def test_other_errors_are_told_as_they_are(beside_a_gpu: None) -> None:
    with pytest.raises(ValueError, match="the same number"):
        gpu.on_gpu(is_wrong, apart=True)


def test_the_process_ends_with_a_parent_that_is_killed() -> None:
    code = (
        "import os, tasks.gpu as gpu\n"
        "gpu.has_gpu = lambda: True\n"
        "from tests.tasks.test_gpu import process\n"
        "print(gpu.on_gpu(process, apart=True)[0], flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = psutil.Process(int(run.stdout.readline()))
        run.kill()
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()
