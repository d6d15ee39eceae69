"""Rows of cells.csv and the stage of the cell cycle."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.instances.regions import CellRegion
from cmseg_core.morphology.measure import column_names, measure_cell, unmeasured_cell
from cmseg_core.morphology.stage import SINGLE_COPY, cell_cycle_stage, stage_by_rule
from cmseg_core.morphology.stage_classifier import StageClassifier
from cmseg_core.schema import C_MEROLAE, OrganelleClass, Taxonomy, VoxelSize

VOXEL = VoxelSize(z=40, y=20, x=20)
SHAPE = (40, 80, 80)
ORIGIN = (3, 10, 20)
OTHER = Taxonomy(classes=(OrganelleClass(id=0, name="outside"), OrganelleClass(id=1, name="vesicle")))


def ball(centre_nm, radius_nm):
    axes = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    return sum(((a + 0.5) * e - c) ** 2 for a, e, c in zip(axes, VOXEL.zyx, centre_nm, strict=True)) <= radius_nm**2


def cell(*, peroxisomes=1, nucleus=True):
    labels = ball((800, 800, 800), 700).astype(np.uint8)
    labels[ball((800, 800, 450), 250)] = 2
    labels[ball((500, 800, 850), 150)] = 3
    for i in range(peroxisomes):
        labels[ball((1100, 500 + 300 * i, 850), 100)] = 4
    if nucleus:
        labels[ball((800, 800, 1150), 200)] = 5
    return labels


def region(labels, **changes):
    volume = np.count_nonzero(labels) * VOXEL.volume_um3
    facts = {"cell_id": 7, "box": ((5, 41), (15, 85), (25, 95)), "touches_border": False, "volume_um3": volume,
             "centroid_nm": (920.0, 1000.0, 1200.0), "neck_ratio": 1.0, "lobes_um3": (volume,)}  # fmt: skip
    return CellRegion(**(facts | changes))


def measure(labels, confidence=250, expected=1.0, classifier=None, **changes):
    sure = np.full(SHAPE, confidence, np.uint8) if np.isscalar(confidence) else confidence
    foretold = {c.name: expected if (labels == c.id).any() else None for c in C_MEROLAE.foreground}
    facts = region(labels, **changes)
    judged = {"disagreement": 0.125, "expected_iou": foretold, "classifier": classifier}
    return measure_cell(labels, sure, C_MEROLAE, VOXEL, facts, ORIGIN, **judged)


def test_row_has_the_columns_and_the_facts_of_the_cell():
    row = measure(cell())
    assert list(row) == column_names(C_MEROLAE)
    assert (row["cell_id"], row["touches_border"], row["flags"]) == (7, False, "")
    assert [row[f"bbox_{a}{e}"] for a in "zyx" for e in (0, 1)] == [5, 41, 15, 85, 25, 95]
    centre = [row[f"centroid_{a}_nm"] for a in "zyx"]
    assert centre == pytest.approx([800 + 3 * 40, 800 + 10 * 20, 800 + 20 * 20], abs=2)
    assert row["volume_um3"] == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=0.02)
    assert row["surface_um2"] == pytest.approx(4 * np.pi * 0.7**2, rel=0.03)
    for name, radius in (("plastid", 0.25), ("mitochondrion", 0.15), ("peroxisome", 0.10), ("nucleus", 0.20)):
        assert row[f"{name}_count"] == 1
        assert row[f"{name}_volume_um3"] == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.06)
        assert row[f"{name}_surface_um2"] == pytest.approx(4 * np.pi * radius**2, rel=0.06)
        assert row[f"{name}_confidence"] == pytest.approx(250 / 255)
    assert row["stage"] == 1
    assert (row["review_score"], row["disagreement"]) == (0.0, 0.125)


def test_missing_and_extra_organelles_are_flagged_and_missing_ones_raise_the_score():
    good, three, none = measure(cell()), measure(cell(peroxisomes=3)), measure(cell(nucleus=False, peroxisomes=0))
    assert three["peroxisome_count"] == 3
    assert three["flags"] == "extra:peroxisome"
    assert none["flags"] == "missing:peroxisome;missing:nucleus"
    assert (none["nucleus_count"], none["nucleus_volume_um3"], none["nucleus_confidence"]) == (0, 0.0, None)
    assert good["review_score"] == three["review_score"] == 0
    assert none["review_score"] == pytest.approx(2 / 5)
    assert measure(cell(peroxisomes=2))["flags"] == ""


def test_doubt_is_flagged_and_raises_the_score():
    labels = cell()
    confidence = np.full(SHAPE, 250, np.uint8)
    confidence[labels == 4] = 160
    unsure = measure(labels, confidence)
    assert unsure["flags"] == "low_confidence:peroxisome"
    assert unsure["peroxisome_confidence"] == pytest.approx(160 / 255)
    assert measure(labels, expected=0.7)["review_score"] == pytest.approx(0.3)


def test_shape_flags():
    labels = cell()
    row = measure(labels, touches_border=True, neck_ratio=0.4, volume_um3=3.0)
    assert row["flags"] == "touches_border;volume_mismatch;constricted"


def test_nothing_segmented():
    labels = np.zeros(SHAPE, np.uint8)
    row = measure(labels, volume_um3=1.0)
    assert (row["volume_um3"], row["surface_um2"], row["stage"], row["stage_confidence"]) == (0.0, 0.0, None, 0.0)
    assert row["review_score"] == 1.0
    assert row["centroid_z_nm"] == 920.0
    lost = unmeasured_cell(region(cell(), touches_border=True), C_MEROLAE, "failed:inference")
    assert list(lost) == column_names(C_MEROLAE)
    assert (lost["flags"], lost["review_score"]) == ("touches_border;failed:inference", 1.0)


def test_another_taxonomy_has_its_own_columns_and_no_stage():
    labels = (cell() > 1).astype(np.uint8)
    sure = np.full(SHAPE, 255, np.uint8)
    foretold = {"vesicle": 0.75}
    row = measure_cell(labels, sure, OTHER, VOXEL, region(labels), ORIGIN, disagreement=0, expected_iou=foretold)
    assert row["vesicle_count"] == 4
    assert (row["stage"], row["stage_confidence"], row["flags"], row["review_score"]) == (None, 0.0, "", 0.25)
    assert "plastid_count" not in row


def peroxisomes_alone():
    """A classifier that looks at the number of peroxisomes alone: stage 4 where there are two, else stage 2."""
    return StageClassifier(
        taxonomy=C_MEROLAE,
        features=("peroxisome_double",),
        stages=(2, 4),
        centre=(0.5,),
        scale=(0.5,),
        offset=(0.0, 0.0),
        weights=((-1.0,), (1.0,)),
    )


def test_a_classifier_tells_the_stage_in_place_of_the_rule():
    assert measure(cell())["stage"] == 1
    for number, stage in ((1, 2), (2, 4)):
        row = measure(cell(peroxisomes=number), classifier=peroxisomes_alone())
        assert (row["stage"], row["stage_confidence"]) == (stage, pytest.approx(1 / (1 + np.exp(-2))))


def test_a_classifier_leaves_another_taxonomy_alone():
    labels = (cell() > 1).astype(np.uint8)
    given = {"disagreement": 0, "expected_iou": {"vesicle": 0.75}, "classifier": peroxisomes_alone()}
    row = measure_cell(labels, np.full(SHAPE, 255, np.uint8), OTHER, VOXEL, region(labels), ORIGIN, **given)
    assert (row["stage"], row["stage_confidence"]) == (None, 0.0)


def test_the_rule_reads_labels_too():
    assert stage_by_rule(cell(), C_MEROLAE, VOXEL)[0] == 1
    assert stage_by_rule((cell() > 1).astype(np.uint8), OTHER, VOXEL) == (None, 0.0)


def counts(*numbers):
    return {f"{name}_count": n for name, n in zip(SINGLE_COPY, numbers, strict=True)}


@pytest.mark.parametrize(
    ("numbers", "waist", "neck", "stage"),
    [
        ((1, 1, 1, 1), 1.0, 1.0, 1),
        ((1, 1, 1, 1), 0.6, 1.0, 2),
        ((2, 1, 1, 1), 0.1, 1.0, 3),
        ((2, 2, 1, 1), 0.1, 1.0, 4),
        ((2, 2, 2, 1), 0.1, 0.98, 4),
        ((2, 2, 2, 2), 0.1, 0.7, 5),
    ],
)
def test_stages_in_the_order_of_division(numbers, waist, neck, stage):
    found, confidence = cell_cycle_stage(counts(*numbers), plastid_waist=waist, cell_neck=neck)
    assert found == stage
    assert confidence > 0.5


def test_one_wrong_count_does_not_decide():
    assert cell_cycle_stage(counts(1, 1, 2, 1), plastid_waist=1.0, cell_neck=1.0)[0] == 1
    assert cell_cycle_stage(counts(2, 2, 1, 2), cell_neck=0.7)[0] == 5
    assert cell_cycle_stage(counts(2, 2, 0, 2), cell_neck=0.7)[0] == 5
    clear = cell_cycle_stage(counts(1, 1, 1, 1), plastid_waist=1.0)[1]
    assert cell_cycle_stage(counts(1, 1, 1, 2), plastid_waist=1.0)[1] < clear


def test_stage_is_unknown_without_the_organelles():
    assert cell_cycle_stage({"vesicle_count": 3}) == (None, 0.0)
    assert cell_cycle_stage(counts(0, 0, 0, 0)) == (None, 0.0)
