"""Fields that hold something else than a crowd of cells: each is processed, and the report says what was odd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from cmseg_core.errors import InputError
from cmseg_core.schema import PipelineConfig
from cmseg_core.storage import omezarr

Change = Callable[[np.ndarray], np.ndarray]


def _section(grey: int) -> Change:
    def change(stack: np.ndarray) -> np.ndarray:
        stack[len(stack) // 2] = grey
        return stack

    return change


def _dust(stack: np.ndarray) -> np.ndarray:
    """The cells in a wide field of resin, with ten thousand specks as grey as cells in it, away from each other."""
    rng = np.random.default_rng(0)
    resin, cell = np.bincount(stack[0].ravel()).argmax(), np.median(stack[10:-10, 10:-10, 10:-10])
    wide = np.clip(rng.normal(resin, 3, (206, 240, 240)), 0, 255).astype(np.uint8)
    z, y, x = (np.arange(3, n - 8, 10) for n in wide.shape)
    for shift in np.ndindex(5, 5, 5):
        wide[np.ix_(z + shift[0], y + shift[1], x + shift[2])] = cell
    wide[: stack.shape[0] + 2, : stack.shape[1] + 2, : stack.shape[2] + 2] = resin
    wide[: stack.shape[0], : stack.shape[1], : stack.shape[2]] = stack
    assert len(z) * len(y) * len(x) >= 10_000
    return wide


def _one_cell(stack: np.ndarray) -> np.ndarray:
    """A field inside one cell: texture everywhere, and smooth resin along one edge alone."""
    rough = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=stack.shape), 1)
    inside = np.clip(100 + 80 * rough, 20, 130).astype(np.uint8)
    inside[:, :14, :14] = 150
    return inside


def process(make_request: Any, tiny: Path, folder: Path, change: Change) -> tuple[Any, str, np.ndarray]:
    """The result, the report and the cells of the tiny acquisition, changed."""
    from flows.process_acquisition import process_acquisition

    stack = change(tifffile.imread(tiny / "stack.tif"))
    source = folder / "stack.tif"
    tifffile.imwrite(source, stack, photometric="minisblack")
    settings = {"foreground": {"method": "threshold", "cell_diameter_px": 32}, "quality": {"min_snr": 0}}
    request = make_request(
        source=str(source),
        voxel_size={"z": 60, "y": 50, "x": 50},
        truth_cells=None,
        truth_organelles=None,
        config=PipelineConfig.model_validate(settings),
    )
    result = process_acquisition(request)
    cells, _ = omezarr.open_image(request.out / "volume.ome.zarr" / "labels" / "cells")
    return result, (request.out / "report.html").read_text(), np.asarray(cells[:])


@pytest.mark.parametrize("grey", [0, 255])
def test_a_lost_section_costs_no_cell(make_request: Any, tiny: Path, tmp_path: Path, grey: int) -> None:
    result, report, cells = process(make_request, tiny, tmp_path, _section(grey))
    assert result.state == "published" and result.cells == 3
    truth = tifffile.imread(tiny / "cells.tif")
    found, there = cells > 0, truth > 0
    assert (found & there).sum() / (found | there).sum() > 0.8
    assert f"section {len(cells) // 2 + 1}" in report or "missing" in report.lower()


@pytest.mark.parametrize("grey", [0, 255])
def test_a_field_of_one_grey_is_refused(make_request: Any, tiny: Path, tmp_path: Path, grey: int) -> None:
    with pytest.raises(InputError, match=r"stack\.tif"):
        process(make_request, tiny, tmp_path, lambda stack: np.full_like(stack, grey))
    assert not (tmp_path / "out").exists()


def test_dust_is_no_cell_and_is_counted(make_request: Any, tiny: Path, tmp_path: Path) -> None:
    _, report, cells = process(make_request, tiny, tmp_path, _dust)
    truth = np.zeros(cells.shape, bool)
    z, y, x = (there := tifffile.imread(tiny / "cells.tif") > 0).shape
    truth[:z, :y, :x] = there
    assert ((cells > 0) & truth).sum() / ((cells > 0) | truth).sum() > 0.7
    assert "were dropped as debris" in report


def test_one_cell_that_fills_the_field_is_said_to(make_request: Any, tiny: Path, tmp_path: Path) -> None:
    result, report, cells = process(make_request, tiny, tmp_path, _one_cell)
    assert result.cells == 1
    assert (cells == 1).mean() > 0.9
    assert "is the field smaller than a cell?" in report
