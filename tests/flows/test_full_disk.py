"""A disk that becomes full in the middle of a night: the night waits, loses nothing, and goes on once there is room.

A disk of a chosen size is a mounted tmpfs, for which these tests need to be root; they are skipped elsewhere.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
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


@pytest.mark.slow
def test_the_disk_of_the_store_becomes_full(
    disk: Path,
    tiny: Path,
    tiny_unet: Path,
    config: PipelineConfig,
    prefect_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows import nightly

    monkeypatch.setattr(nightly, "PAUSES", (0.0,))
    stack = tiny / "stack.tif"

    def night(place: Path) -> Store:
        tracking = f"sqlite:///{tmp_path}/mlflow.db"
        place_of: dict[str, Any] = {"workspace": tmp_path / "workspace", "store": str(place)}
        workspace = Workspace(**place_of, unet=str(tiny_unet), mlflow_tracking_uri=tracking)
        nightly.nightly(config=config, workspace=workspace)
        return Store.open(place)

    submit(str(stack), "tiny", Store.open(tmp_path / "undisturbed"))
    submitted = used(tmp_path / "undisturbed")
    whole = published(night(tmp_path / "undisturbed"))
    taken = used(tmp_path / "undisturbed") - submitted

    for share in (0.1, 0.5, 0.9):
        place = disk / f"full-at-{share}"
        submit(str(stack), "tiny", Store.open(place))
        before = used(disk)
        resize(disk, before + int(share * taken))
        with pytest.raises(nightly.Unfinished, match="No space left on device"):
            night(place)
        assert "quarantine" not in Store.open(place).folders()
        assert not Store.open(place).exists("acquisitions/tiny/manifest.json")
        resize(disk, 256 << 20)
        assert published(night(place)) == whole
