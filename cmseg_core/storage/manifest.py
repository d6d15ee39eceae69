"""The manifest, written last, and the one step in which a finished folder appears under its final name."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.schema import Acquisition, Manifest, OutputFile, first_problem
from cmseg_core.storage.trees import tree_files

NAME = "manifest.json"


def build(
    folder: str | Path,
    acquisition: Acquisition,
    config: Mapping[str, Any],
    keys: Mapping[str, str],
    versions: Mapping[str, str],
    models: Mapping[str, Mapping[str, str]],
    quarantined: Mapping[str, str] | None = None,
) -> Manifest:
    """Hash every file below `folder` and write ``manifest.json`` beside them, last and in one step.

    Parameters
    ----------
    folder : path
        The finished result. Zarr arrays count file by file. A manifest that is there already is replaced.
    acquisition : Acquisition
    config : mapping
        Settings as plain JSON values.
    keys : mapping of str to str
        Stage name to the key of its output.
    versions : mapping of str to str
        Package name to version.
    models : mapping
        Role to reference, version and sha256.
    quarantined : mapping of str to str, optional
        Cell id to the reason why it has no organelles.

    Raises
    ------
    InputError
        Where `folder` is no folder or holds a link.
    """
    folder = Path(folder)
    files = {name: path for name, path in tree_files(folder).items() if name != NAME}
    manifest = Manifest(
        acquisition=acquisition,
        config=dict(config),
        keys=dict(keys),
        versions=dict(versions),
        models={role: dict(about) for role, about in models.items()},
        outputs=tuple(
            OutputFile(path=name, sha256=file_sha256(path), bytes=path.stat().st_size) for name, path in files.items()
        ),
        quarantined_cells=dict(quarantined or {}),
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
    _write_at_once(folder / NAME, f"{text}\n".encode())
    return manifest


def read(folder: str | Path) -> Manifest:
    """The manifest of a result.

    Raises
    ------
    InputError
        Where there is none, or it cannot be understood.
    """
    path = Path(folder) / NAME
    mend = "give a folder that cmseg finished"
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", mend) from error
    except ValidationError as error:
        raise InputError(path, f"is not a manifest ({first_problem(error)})", mend) from error


def verify(folder: str | Path) -> list[str]:
    """Compare a result with its manifest; returns one line for each problem, none where all is well."""
    folder = Path(folder)
    found = tree_files(folder)
    sizes = {name: path.stat().st_size for name, path in found.items()}
    return compare(read(folder), sizes, lambda name: file_sha256(found[name]))


def compare(manifest: Manifest, sizes: Mapping[str, int], sha256: Callable[[str], str]) -> list[str]:
    """Compare what stands somewhere with a manifest; returns one line for each problem, none where all is well.

    Parameters
    ----------
    manifest : Manifest
    sizes : mapping of str to int
        Path to bytes of everything that is there.
    sha256 : callable
        Gives the SHA-256 of the content of a path.
    """
    expected = {output.path: output for output in manifest.outputs}
    found = sizes.keys() - {NAME}
    problems = [f"{name}: missing" for name in expected.keys() - found]
    problems += [f"{name}: not in the manifest" for name in found - expected.keys()]
    for name in expected.keys() & found:
        if sizes[name] != expected[name].bytes:
            problems.append(f"{name}: {sizes[name]} bytes in place of {expected[name].bytes}")
        elif sha256(name) != expected[name].sha256:
            problems.append(f"{name}: content differs from the manifest")
    return sorted(problems)


def existing_run(out: str | Path) -> Manifest | None:
    """The manifest of a finished result in `out`; None where there is none."""
    return read(out) if (Path(out) / NAME).exists() else None


def check_output(out: str | Path) -> Path:
    """Refuse early a result folder that could not be published in the end; returns its absolute path.

    Raises
    ------
    InputError
        Where `out` is a file or holds something, or its parent cannot be written.
    """
    out = Path(out).expanduser().absolute()
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(out, "is not a folder", "choose another name for the result")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(out, "is not empty", "choose a new or an empty folder, or remove this one")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Asking for the permission is not enough: root has it on a read-only file system too.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".cmseg-"):
            pass
    except OSError as error:
        raise InputError(
            out.parent, f"cannot be written ({error.strerror})", "choose another place for the result"
        ) from error
    return out


@contextmanager
def staging(out: str | Path) -> Iterator[Path]:
    """An empty folder beside `out` in which to prepare it, removed at the end unless it was published.

    What a killed run left there is cleared; a run that is alive is not disturbed.

    Raises
    ------
    InputError
        As `check_output`, and where another run is preparing the same folder.
    """
    out = check_output(out)
    folder = out.parent / f".{out.name}.partial"
    lock_path = out.parent / f".{out.name}.lock"
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _taken(lock, lock_path):
            raise InputError(out, "another run is preparing it", "wait for that run, or choose another folder")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def publish_folder(staging: str | Path, out: str | Path) -> Path:
    """Give a finished folder its final name in one step.

    Parameters
    ----------
    staging : path
        Holds the result; best from `staging`, since only within one file system is the step a mere renaming.
    out : path

    Raises
    ------
    InputError
        As `check_output`.
    """
    staging = Path(staging)
    out = check_output(out)
    try:
        os.rename(staging, out)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:  # another run was faster
            raise InputError(out, "is not empty", "choose a new or an empty folder, or remove this one") from error
        if error.errno != errno.EXDEV:
            raise
        _publish_copy(staging, out)
    _sync(out.parent)
    return out


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _taken(lock: int, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed the file between our opening and our locking it.
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _publish_copy(staging: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as near:
        shutil.copytree(staging, Path(near) / "copy")
        os.rename(Path(near) / "copy", out)
    shutil.rmtree(staging)


def _write_at_once(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
