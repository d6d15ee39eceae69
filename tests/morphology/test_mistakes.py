"""Spoilt labels: still the same cell, and the same draw for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.morphology.mistakes import mistaken_labels
from cmseg_core.preprocess.resample import resize
from cmseg_core.schema import C_MEROLAE
from tests.morphology.staged import staged_cells


def test_labels_are_spoilt_but_the_cell_stays():
    cells = staged_cells(31, each=1)
    rng = np.random.default_rng(0)
    overlaps = []
    for cell in (*cells, *cells):
        spoilt, voxel_size = mistaken_labels(cell.labels, C_MEROLAE, cell.voxel_size, rng)
        truth = resize(cell.labels, spoilt.shape, "nearest")
        overlaps.append(float((spoilt == truth)[truth > 0].mean()))
        extent = [n * e for n, e in zip(spoilt.shape, voxel_size.zyx, strict=True)]
        assert extent == pytest.approx([n * e for n, e in zip(cell.labels.shape, cell.voxel_size.zyx, strict=True)])
        volume, true = (
            np.count_nonzero(a) * v.volume_um3 for a, v in ((spoilt, voxel_size), (cell.labels, cell.voxel_size))
        )
        assert volume == pytest.approx(true, rel=0.3)
    assert 0.6 < min(overlaps) < max(overlaps) < 1
    assert np.ptp(overlaps) > 0.02  # some hardly, some badly


def test_the_same_seed_makes_the_same_mistakes():
    cell = staged_cells(31, each=1)[0]
    drawn = [mistaken_labels(cell.labels, C_MEROLAE, cell.voxel_size, np.random.default_rng(s))[0] for s in (4, 4, 5)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_organelles_are_lost_and_added_now_and_then():
    cell = staged_cells(31, each=1)[0]
    rng = np.random.default_rng(1)
    sizes = np.array(
        [
            np.bincount(mistaken_labels(cell.labels, C_MEROLAE, cell.voxel_size, rng)[0].ravel(), minlength=6)[2:]
            for _ in range(60)
        ]
    )
    assert (sizes == 0).any()
    assert (sizes == 0).mean() < 0.15
