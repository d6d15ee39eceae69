"""What the machine allows this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil


def machine_limit_gb(root: Path = Path("/")) -> float:
    """Memory that this process can have at all: that of the machine, or less where its control group, such as a
    container's, is limited.

    Parameters
    ----------
    root : path
        Where ``proc`` and ``sys`` are.
    """
    limits = [psutil.virtual_memory().total / 1e9]
    for file in _limit_files(root):
        try:
            limits.append(int(file.read_text(encoding="ascii")) / 1e9)
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
    return min(limits)


def has_gpu() -> bool:
    """Whether there is an NVIDIA driver, and this process is not kept from its devices."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return False
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _limit_files(root: Path) -> Iterator[Path]:
    """Files with the limits of the control groups (version 1 and 2) in which this process is, and of those above."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in {"", "memory"}:
            base = "sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup"
            file = "memory.limit_in_bytes" if controllers else "memory.max"
            group = Path(name.lstrip("/"))
            yield from (root / base / part / file for part in (group, *group.parents))
