"""What the stage is judged by: right for shapes that can be reckoned, and without a unit."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.morphology.stage_features import FEATURES, stage_features
from cmseg_core.schema import C_MEROLAE, OrganelleClass, Taxonomy, VoxelSize

SHAPE = (60, 60, 90)
CUBIC = VoxelSize(z=30, y=30, x=30)


def ellipsoid(centre, radii):
    axes = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) <= 1


def cell():
    """An ellipsoid twice as long as it is wide, with one nucleus, two plastids and no peroxisome."""
    labels = ellipsoid((30, 30, 45), (20, 20, 40)).astype(np.uint8)
    labels[ellipsoid((30, 30, 45), (8, 8, 8))] = 5
    labels[ellipsoid((30, 30, 20), (9, 9, 9))] = 2
    labels[ellipsoid((30, 30, 70), (6, 6, 6))] = 2
    labels[ellipsoid((42, 30, 45), (3, 3, 9))] = 3
    return labels


def test_features_of_shapes_that_can_be_reckoned():
    found = stage_features(cell(), C_MEROLAE, CUBIC)
    assert tuple(found) == FEATURES
    assert found["cell_elongation"] == pytest.approx(np.log(2), abs=0.02)
    assert found["cell_neck"] == found["cell_waist"] == 1
    assert (found["nucleus_double"], found["nucleus_apart"]) == (0, 0)
    assert found["nucleus_waist"] > 0.95
    assert found["nucleus_elongation"] == pytest.approx(0, abs=0.02)
    assert found["nucleus_reach"] == pytest.approx(8 / 40, abs=0.01)
    assert found["nucleus_fraction"] == pytest.approx(np.log(8**3 / (20 * 20 * 40)), abs=0.05)
    assert found["plastid_double"] == 1
    assert found["plastid_balance"] == pytest.approx(6**3 / 9**3, rel=0.06)
    assert found["plastid_apart"] == pytest.approx(50 / (2 * (20 * 20 * 40) ** (1 / 3)), rel=0.02)
    assert found["plastid_waist"] == 0
    assert found["mitochondrion_elongation"] == pytest.approx(np.log(3), abs=0.08)


def test_what_is_not_there_is_not_known():
    found = stage_features(cell(), C_MEROLAE, CUBIC)
    assert all(np.isnan(value) == name.startswith("peroxisome") for name, value in found.items())
    nothing = stage_features(np.zeros(SHAPE, np.uint8), C_MEROLAE, CUBIC)
    assert tuple(nothing) == FEATURES
    assert np.isnan(list(nothing.values())).all()


def test_a_speck_is_no_second_organelle():
    labels = cell()
    labels[30:32, 30:32, 60] = 5
    assert stage_features(labels, C_MEROLAE, CUBIC)["nucleus_double"] == 0


def test_neither_size_nor_voxels_nor_ids_matter():
    usual = stage_features(cell(), C_MEROLAE, CUBIC)
    larger = stage_features(cell(), C_MEROLAE, VoxelSize(z=45, y=45, x=45))
    assert larger == pytest.approx(usual, nan_ok=True)
    thinned = stage_features(np.ascontiguousarray(cell()[::2]), C_MEROLAE, VoxelSize(z=60, y=30, x=30))
    assert thinned == pytest.approx(usual, abs=0.25, nan_ok=True)
    names = ("background", "nucleus", "peroxisome", "mitochondrion", "plastid", "vacuole", "cytoplasm")
    other = Taxonomy(classes=tuple(OrganelleClass(id=i, name=name) for i, name in enumerate(names)))
    ids = np.array([0, 6, 4, 3, 2, 1], np.uint8)
    assert stage_features(ids[cell()], other, CUBIC) == pytest.approx(usual, nan_ok=True)
