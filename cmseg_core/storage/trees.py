"""Folders of files on their way into and out of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cmseg_core.errors import InputError

PARALLEL_TRANSFERS = 8


def tree_files(folder: Path) -> dict[str, Path]:
    """Every regular file below `folder` as relative POSIX path to path, sorted.

    Raises
    ------
    InputError
        Where `folder` is no folder or holds anything else, such as a link: it could lead out of the tree.
    """
    if not folder.is_dir():
        raise InputError(folder, "is not a folder", "give the path of an existing folder")
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(path, "is neither a file nor a folder", "replace links by what they point to")
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path
    return files


def transfer(names: Iterable[str], last: Iterable[str], move: Callable[[str], object]) -> None:
    """Call `move` for every name in parallel, then for those in `last` one by one."""
    names, last = list(names), list(last)
    with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
        pending = [pool.submit(move, name) for name in names if name not in last]
        try:
            for future in pending:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name in last:
        if name in names:
            move(name)
