"""Published results brought from the store to a folder, and compared with their manifest on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cmseg_core.errors import InputError
from cmseg_core.schema import OutputFile, Workspace
from cmseg_core.storage import manifest
from cmseg_core.storage.keys import checked_key
from cmseg_core.storage.store import Store
from cmseg_core.storage.trees import transfer
from flows.console import DONE, Console
from flows.environment import prepare
from flows.published import Published


def fetch_result(
    store: Store,
    name: str,
    folder: Path,
    only: Sequence[str] = (),
    told: Callable[[int], None] = lambda _: None,
) -> list[Path]:
    """Bring a published result, or some of its files, to ``folder/name``; what lies there already is not read again.

    Parameters
    ----------
    store : Store
    name : str
        Of a published acquisition.
    folder : path
    only : sequence of str
        Files of the result, or folders of it; by default all of them, with ``manifest.json`` last.
    told : callable
        Is told of each file.

    Returns
    -------
    list of path
        The files that were asked for, sorted.

    Raises
    ------
    InputError
        Where the result has no such file, another one lies in its place, or it differs from the manifest.
    """
    published = Published(store, name)
    target = folder / name
    outputs = {checked_key(output.path): output for output in published.manifest.outputs}
    wanted = {path: output for path, output in outputs.items() if not only or _below(path, only)}
    for one in only:
        if not any(_below(path, [one]) for path in wanted):
            mend = "name a file or a folder of it, such as report.html, cells.csv or cells/3"
            raise InputError(one, f"is no part of the result {name}", mend)
    former = manifest.existing_run(target)
    if former is not None and former != published.manifest:
        raise InputError(target, "holds another result", "choose another folder")
    absent = [path for path, output in wanted.items() if not _is_there(target / path, output)]

    def bring(path: str) -> None:
        store.download_file(f"{published.place}/{path}", target / path)
        if manifest.file_sha256(target / path) != wanted[path].sha256:
            (target / path).unlink()
            raise InputError(
                f"{published.place}/{path}", "differs from its checksum", f"see `cmseg status {name} --verify`"
            )
        told(1)

    transfer(absent, (), bring)
    told(len(wanted) - len(absent))
    if not only:
        store.download_file(f"{published.place}/{manifest.NAME}", target / manifest.NAME)
    return sorted(target / path for path in wanted)


def show_fetch(console: Console, name: str, to: Path, only: Sequence[str]) -> int:
    """Fetch a result as ``cmseg fetch`` is asked to."""
    workspace = Workspace()
    prepare(workspace)
    from flows.places import store_address
    from flows.status import known
    from tasks.landing import state_of

    store = store_address(workspace).open()
    if name not in known(store, name):  # a version other than those there are
        raise InputError(name, "was never submitted", "see `cmseg status` for the names that were")
    state, reason = state_of(store, name)
    if state != "published":
        raise InputError(name, f"has no result: it is {state}{f' ({reason})' if reason else ''}", "see `cmseg status`")
    with console.progress(f"fetching {name}", len(Published(store, name).manifest.outputs)) as advance:
        files = fetch_result(store, name, to, only, advance)
    folder = to / name
    document = {"name": name, "folder": str(folder), "files": [path.relative_to(folder).as_posix() for path in files]}
    console.result(document, str(files[0]) if len(files) == 1 else f"{len(files)} files in {folder}")
    return DONE


def _below(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(f"{place.rstrip('/')}/") for place in places)


def _is_there(path: Path, output: OutputFile) -> bool:
    if not path.exists():
        return False
    if not path.is_file() or path.stat().st_size != output.bytes or manifest.file_sha256(path) != output.sha256:
        raise InputError(path, "is there already, with other content", "choose another folder, or remove it")
    return True
