"""Simulated acquisitions: anatomy, truth, seeds, slabs and files."""

import json

import cc3d
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from cmseg_core.errors import InputError
from cmseg_core.phantom import DEFECTS, draw_field, draw_look, write_acquisition
from cmseg_core.schema import C_MEROLAE, VoxelSize

COARSE = VoxelSize(z=50, y=40, x=40)
FINE = VoxelSize(z=25, y=25, x=25)


@pytest.fixture(scope="module")
def crowd():
    field = draw_field(3, cells=8, voxel_size=COARSE)
    return field, *field.render(0, field.shape[0])


def test_every_stage_is_there_and_every_cell_is_in_the_truth(crowd):
    field, _, cells, _ = crowd
    assert set(field.stages.values()) == {1, 2, 3, 4, 5}
    assert set(np.unique(cells)) == set(range(9))


def test_cells_touch(crowd):
    _, _, cells, _ = crowd
    pieces = cc3d.connected_components(cells > 0, connectivity=6)
    assert pieces.max() < 8, "some cells share a border, so that components alone do not tell them apart"


def test_a_cell_is_one_piece_of_its_stated_size():
    field = draw_field(1, cells=1, voxel_size=FINE, shape=(110, 110, 110), stages=[1])
    _, cells, _ = field.render(0, 110)
    assert cc3d.connected_components(cells, connectivity=6).max() == 1
    diameter = (6 / np.pi * (cells > 0).sum() * FINE.volume_um3) ** (1 / 3)
    assert 1.35 <= diameter <= 2.15


@pytest.mark.parametrize(
    ("stage", "counts"),
    [
        (1, {"plastid": 1, "mitochondrion": 1, "peroxisome": 1, "nucleus": 1}),
        (2, {"plastid": 1, "mitochondrion": 1, "peroxisome": 1, "nucleus": 1}),
        (3, {"plastid": 2, "mitochondrion": 1, "peroxisome": 1, "nucleus": 1}),
        (4, {"plastid": 2, "mitochondrion": 2, "peroxisome": 2, "nucleus": 1}),
        (5, {"plastid": 2, "mitochondrion": 2, "peroxisome": 2, "nucleus": 2}),
    ],
)
def test_organelles_part_in_the_papers_order(stage, counts):
    seen = {name: [] for name in counts}
    for seed in range(3):
        field = draw_field(seed, cells=1, voxel_size=FINE, shape=(130, 130, 130), stages=[stage])
        _, cells, organelles = field.render(0, 130)
        assert cc3d.connected_components(cells, connectivity=6).max() == 1, "daughters are still joined"
        for name in counts:
            pieces = cc3d.connected_components(organelles == C_MEROLAE.id_of(name), connectivity=26)
            sizes = np.bincount(pieces.ravel())[1:] * FINE.volume_um3
            seen[name].append(int((sizes > 0.0008).sum()))
    assert {name: int(np.median(found)) for name, found in seen.items()} == counts


def test_organelles_lie_in_cells(crowd):
    _, _, cells, organelles = crowd
    assert ((organelles > 0) == (cells > 0)).all()


@settings(deadline=None, max_examples=6)
@given(cut=st.integers(1, 20))
def test_slabs_do_not_change_the_field(cut):
    field = draw_field(5, cells=2, voxel_size=COARSE, shape=(21, 48, 52), defects=["curtaining", "jitter", "noise"])
    whole = field.render(0, 21)
    parts = [np.concatenate(pair) for pair in zip(field.render(0, cut), field.render(cut, 21), strict=True)]
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_seed_gives_one_field_and_another_seed_another():
    a, b, c = (draw_field(seed, cells=2, voxel_size=COARSE, shape=(8, 40, 40)).render(0, 8)[0] for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).mean() > 0.5


def test_looks_differ_widely_from_seed_to_seed():
    looks = [draw_look(np.random.default_rng(seed)) for seed in range(200)]
    for name in ("resin", "cytoplasm", "plastid", "nucleus", "membrane", "noise", "blur_px"):
        values = np.array([getattr(look, name) for look in looks])
        assert values.std() > 0.15 * values.mean(), name
    assert 0.1 < np.mean([look.inverted for look in looks]) < 0.4


def test_in_hard_fields_the_resin_is_as_grey_as_the_cytoplasm():
    for seed in range(20):
        look = draw_look(np.random.default_rng(seed), hard=True)
        assert abs(look.resin - look.cytoplasm) <= 0.021
        assert look.light > 0.05 and look.debris_per_um3 > 0


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_changes_the_image(defect):
    def image(defects):
        return draw_field(7, cells=2, voxel_size=COARSE, shape=(60, 60, 60), defects=defects).render(0, 60)[0]

    assert (image([]) != image([defect])).any()


def test_missing_sections_are_black_and_listed():
    field = draw_field(7, cells=8, voxel_size=COARSE, shape=(150, 40, 40), defects=["missing"])
    image, cells, _ = field.render(0, 150)
    black = tuple(int(z) for z in np.flatnonzero((image == 0).all(axis=(1, 2))))
    assert black == field.missing and len(black) >= 1
    assert cells[list(black)].any(), "the truth knows what was lost"


def test_an_unknown_defect_is_refused():
    with pytest.raises(ValueError, match="rust"):
        draw_look(np.random.default_rng(0), defects=["rust"])


def test_an_acquisition_is_written_whole_with_its_voxel_size(tmp_path):
    field = draw_field(2, cells=2, voxel_size=COARSE, shape=(20, 40, 44))
    done = []
    write_acquisition(field, tmp_path / "a", progress=done.append)
    image, cells, organelles = field.render(0, 20)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a" / "stack.tif"), image)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a" / "cells.tif"), cells)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a" / "organelles.tif"), organelles)
    facts = json.loads((tmp_path / "a" / "acquisition.json").read_text())
    assert facts["voxel_size"] == {"z": 50, "y": 40, "x": 40} and sum(done) == 20
    assert {p.name for p in tmp_path.iterdir()} == {"a"}
    with pytest.raises(InputError, match="not empty"):
        write_acquisition(field, tmp_path / "a")


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_acquisition(draw_field(2, cells=1, voxel_size=COARSE, shape=(9, 30, 30)), tmp_path / name)
    for file in ("stack.tif", "cells.tif", "organelles.tif", "acquisition.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
