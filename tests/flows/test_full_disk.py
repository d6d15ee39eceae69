"""A disk that becomes full or read-only in the middle of a night: the night waits, loses nothing, and goes on later.

A disk of a chosen size is a mounted tmpfs, for which these tests need to be root; they are skipped elsewhere.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cmseg_core.schema import PipelineConfig, Workspace
from cmseg_core.storage.store import Store
from flows.submit import submit


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, which :func:`resize` makes larger or smaller."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def used(folder: Path) -> int:
    """Bytes that a tmpfs takes for the files in a folder: whole pages of 4096."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def published(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for folder in ("acquisitions", "quarantine") for key in store.list(folder)}


Night = Callable[[Path], Store]


@pytest.fixture
def night(tiny_unet: Path, config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    """Run a night over a store."""
    from flows import nightly

    monkeypatch.setattr(nightly, "PAUSES", (0.0,))
    tracking = f"sqlite:///{tmp_path}/mlflow.db"

    def run(place: Path) -> Store:
        place_of: dict[str, Any] = {"workspace": tmp_path / "workspace", "store": str(place)}
        workspace = Workspace(**place_of, unet=str(tiny_unet), mlflow_tracking_uri=tracking)
        nightly.nightly(config=config, workspace=workspace)
        return Store.open(place)

    return run


class ReadOnly(logging.Handler):
    """Makes a disk read-only as a flow tells that it labels cells."""

    def __init__(self, disk: Path) -> None:
        super().__init__()
        self.disk, self.done = disk, False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.done and "labelling" in record.getMessage():
            subprocess.run(["mount", "-o", "remount,ro", self.disk], check=True)
            self.done = True


@pytest.mark.slow
def test_the_disk_of_the_store_becomes_read_only(
    disk: Path, tiny: Path, night: Night, prefect_home: Path, tmp_path: Path
) -> None:
    from flows.nightly import Unfinished

    for place in (tmp_path / "undisturbed", disk):
        submit(str(tiny / "stack.tif"), "tiny", Store.open(place))
    whole = published(night(tmp_path / "undisturbed"))
    handler = ReadOnly(disk)
    logging.getLogger("cmseg.flows").addHandler(handler)
    try:
        with pytest.raises(Unfinished, match="Read-only file system"):
            night(disk)
    finally:
        logging.getLogger("cmseg.flows").removeHandler(handler)
    assert handler.done
    assert Store.open(disk).folders() == ["incoming", "work"]
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert published(night(disk)) == whole


@pytest.mark.slow
def test_the_disk_of_the_store_becomes_full(
    disk: Path, tiny: Path, night: Night, prefect_home: Path, tmp_path: Path
) -> None:
    from flows.nightly import Unfinished

    stack = tiny / "stack.tif"
    submit(str(stack), "tiny", Store.open(tmp_path / "undisturbed"))
    submitted = used(tmp_path / "undisturbed")
    whole = published(night(tmp_path / "undisturbed"))
    taken = used(tmp_path / "undisturbed") - submitted

    for share in (0.1, 0.5, 0.9):
        place = disk / f"full-at-{share}"
        submit(str(stack), "tiny", Store.open(place))
        before = used(disk)
        resize(disk, before + int(share * taken))
        with pytest.raises(Unfinished, match="No space left on device"):
            night(place)
        assert "quarantine" not in Store.open(place).folders()
        assert not Store.open(place).exists("acquisitions/tiny/manifest.json")
        resize(disk, 256 << 20)
        assert published(night(place)) == whole
