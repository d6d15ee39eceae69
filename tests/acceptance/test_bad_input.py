"""Bad usage and bad input: exit status 2, one line that names the file and the mend, nothing written or changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

NOISE = np.random.default_rng(0).integers(60, 200, (12, 40, 48)).astype(np.uint8)
SIZE = ("--voxel-size", 40, 40, 40)


def _stack(folder: Path, volume: np.ndarray = NOISE) -> Path:
    path = folder / "stack.tif"
    tifffile.imwrite(path, volume, photometric="minisblack")
    return path


def _no_voxel_size(folder: Path) -> tuple[list[object], str]:
    return [_stack(folder)], "voxel size"


def _not_a_tiff(folder: Path) -> tuple[list[object], str]:
    path = folder / "notes.tif"
    path.write_text("not an image")
    return [path, *SIZE], "notes.tif"


def _unequal_slices(folder: Path) -> tuple[list[object], str]:
    (folder / "slices").mkdir()
    tifffile.imwrite(folder / "slices" / "s0001.tif", NOISE[0])
    tifffile.imwrite(folder / "slices" / "s0002.tif", NOISE[1, :30])
    return [folder / "slices", *SIZE], "s0002.tif"


def _three_channels(folder: Path) -> tuple[list[object], str]:
    path = folder / "colour.tif"
    tifffile.imwrite(path, np.stack([NOISE] * 3, axis=-1), photometric="rgb")
    return [path, *SIZE], "channel"


def _empty_folder(folder: Path) -> tuple[list[object], str]:
    (folder / "empty").mkdir()
    return [folder / "empty", *SIZE], "empty"


def _absent(folder: Path) -> tuple[list[object], str]:
    return [folder / "absent.tif", *SIZE], "absent.tif"


def _truncated(folder: Path) -> tuple[list[object], str]:
    path = _stack(folder)
    path.write_bytes(path.read_bytes()[:6000])
    return [path, *SIZE], "stack.tif"


def _truth_of_another_shape(folder: Path) -> tuple[list[object], str]:
    tifffile.imwrite(folder / "truth.tif", np.zeros((12, 40, 50), np.uint16), photometric="minisblack")
    return [_stack(folder), *SIZE, "--truth-cells", folder / "truth.tif"], "truth.tif"


def _absent_truth(folder: Path) -> tuple[list[object], str]:
    return [_stack(folder), *SIZE, "--truth-cells", folder / "nothing.tif"], "nothing.tif"


def _absent_model(folder: Path) -> tuple[list[object], str]:
    return [_stack(folder), *SIZE, "--unet", folder / "nothing.keras"], "nothing.keras"


def _absent_settings(folder: Path) -> tuple[list[object], str]:
    return [_stack(folder), *SIZE, "--config", folder / "nothing.yaml"], "nothing.yaml"


def _unknown_setting(folder: Path) -> tuple[list[object], str]:
    (folder / "settings.yaml").write_text("foregruond: {method: threshold}\n")
    return [_stack(folder), *SIZE, "--config", folder / "settings.yaml"], "foregruond"


def _setting_out_of_range(folder: Path) -> tuple[list[object], str]:
    (folder / "settings.yaml").write_text("foreground: {pred_iou_thresh: 7}\n")
    return [_stack(folder), *SIZE, "--config", folder / "settings.yaml"], "pred_iou_thresh"


def _voxel_size_of_nothing(folder: Path) -> tuple[list[object], str]:
    return [_stack(folder), "--voxel-size", 0, 40, 40], "--voxel-size"


def _too_little_memory(folder: Path) -> tuple[list[object], str]:
    return [_stack(folder), *SIZE, "--max-memory", 0.1], "memory"


CASES = [
    _no_voxel_size,
    _not_a_tiff,
    _unequal_slices,
    _three_channels,
    _empty_folder,
    _absent,
    _truncated,
    _truth_of_another_shape,
    _absent_truth,
    _absent_model,
    _absent_settings,
    _unknown_setting,
    _setting_out_of_range,
    _voxel_size_of_nothing,
    _too_little_memory,
]


def _snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
def test_run_refuses_a_bad_source(
    cmseg: Callable[..., Any], unet: Path, tmp_path: Path, case: Callable[[Path], tuple[list[object], str]]
) -> None:
    arguments, named = case(tmp_path)
    defaults = [] if "--unet" in arguments else ["--unet", unet]
    if "--config" not in arguments:
        (tmp_path / "threshold.yaml").write_text("foreground: {method: threshold}\n")
        defaults += ["--config", tmp_path / "threshold.yaml"]
    before = _snapshot(tmp_path)
    refused = cmseg("run", arguments[0], tmp_path / "out", *arguments[1:], *defaults)
    assert refused.status == 2, refused.err
    assert named in refused.complaint()
    assert refused.out == ""
    assert _snapshot(tmp_path) == before


@pytest.mark.parametrize("out", ["file/out", "file", "/proc/out", "full"])
def test_run_refuses_a_place_that_it_cannot_or_must_not_write(
    cmseg: Callable[..., Any], unet: Path, threshold: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").write_text("somebody's")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("somebody's")
    stack = _stack(tmp_path)
    before = _snapshot(tmp_path)
    refused = cmseg("run", stack, tmp_path / out, *SIZE, "--unet", unet, "--config", threshold)
    assert refused.status == 2, refused.err
    assert out.split("/")[-1] in refused.complaint()
    assert _snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], None),
        (["bogus"], "bogus"),
        (["run"], "SOURCE"),
        (["run", "a", "b", "--bogus"], "--bogus"),
        (["run", "a", "b", "--voxel-size", 4, 4], "--voxel-size"),
        (["phantom", "{new}", "--cells", "many"], "--cells"),
        (["phantom", "{new}", "--cells", 0], "--cells"),
        (["phantom", "{new}", "--defect", "moths"], "moths"),
        (["phantom", "{new}", "--shape", 4, 50, 50], "--shape"),
        (["phantom", "{new}", "--voxel-size", -1, 4, 4], "--voxel-size"),
        (["phantom", "/proc/phantom"], "/proc/phantom"),
        (["train", "{new}"], "new"),
        (["train", "{new}", "--model", "forest"], "--model"),
        (["models", "import", "{new}", "--role", "unet"], "new"),
        (["models", "fetch", "sam-vit-x"], "sam-vit-x"),
        (["models", "fetch", "sam-vit-b", "--url", "ftp://nowhere/sam.pth"], "ftp://nowhere"),
    ],
)
def test_bad_usage_gets_one_line(
    cmseg: Callable[..., Any], tmp_path: Path, arguments: list[object], named: str | None
) -> None:
    new = str(tmp_path / "new")
    outcome = cmseg(*(str(argument).replace("{new}", new) for argument in arguments))
    if named is None:  # no command at all: the help
        assert outcome.status == 0
        assert "Usage: cmseg" in outcome.out
        return
    assert outcome.status == 2, outcome.err
    assert named in outcome.complaint()
    assert outcome.out == ""
    assert not Path(new).exists()


def test_a_bad_variable_of_the_environment_is_bad_usage(cmseg: Callable[..., Any], tmp_path: Path) -> None:
    refused = cmseg("run", _stack(tmp_path), tmp_path / "out", *SIZE, CMSEG_MAX_MEMORY_GB="plenty")
    assert refused.status == 2
    assert "max_memory_gb" in refused.complaint()


def test_phantom_leaves_a_full_folder_alone(cmseg: Callable[..., Any], phantom: Path) -> None:
    before = _snapshot(phantom)
    refused = cmseg("phantom", phantom)
    assert refused.status == 2
    assert "not empty" in refused.complaint()
    assert _snapshot(phantom) == before
