"""The folder of the stack: for its owner alone, and for whom it lets through."""

from __future__ import annotations

import stat
from pathlib import Path

from deployments.stack import Stack


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_holding_the_stack_makes_its_folder_private_and_shuts_nobody_out(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "workspace")
    with stack.held():
        assert mode(stack.folder) == 0o700
        assert stack.is_up()
    stack.folder.chmod(0o701)  # what PostgreSQL's account needs
    assert not stack.is_up()
    assert mode(stack.folder) == 0o701
