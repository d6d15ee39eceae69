"""Class overlap: worked examples, streaming, merging and stages."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.evaluation import overlap
from cmseg_core.evaluation.instances import score_cells
from cmseg_core.evaluation.overlap import ClassCounts, StageCounts, mean_and_sd
from cmseg_core.evaluation.tables import cell_table, class_table, format_table
from cmseg_core.schema import C_MEROLAE, OrganelleClass, Taxonomy

TWO = Taxonomy(classes=(OrganelleClass(id=0, name="outside"), OrganelleClass(id=1, name="inside")))


def volumes(seed, shape=(6, 7, 8)):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, shape).astype(np.uint8)
    return truth, np.where(rng.random(shape) < 0.7, truth, rng.integers(0, 5, shape)).astype(np.uint8)


def test_scores_equal_the_definition_and_absent_is_none():
    truth, predicted = volumes(0)
    counts = ClassCounts(C_MEROLAE).add(truth, predicted)
    for number, name in enumerate(C_MEROLAE.names[:5]):
        t, p = truth == number, predicted == number
        assert counts.iou()[name] == pytest.approx((t & p).sum() / (t | p).sum())
        assert counts.dice()[name] == pytest.approx(2 * (t & p).sum() / (t.sum() + p.sum()))
    assert counts.iou()["nucleus"] is None
    assert counts.dice()["nucleus"] is None


def test_class_in_one_volume_only_scores_zero():
    counts = ClassCounts(C_MEROLAE).add(np.full((2, 2, 2), 5), np.full((2, 2, 2), 4))
    assert counts.iou()["nucleus"] == counts.iou()["peroxisome"] == 0.0


def test_parts_and_merged_counts_equal_the_whole(monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK_VOXELS", 50)
    truth, predicted = volumes(1)
    whole = ClassCounts(C_MEROLAE).add(truth, predicted)
    first = ClassCounts(C_MEROLAE).add(truth[:2], predicted[:2])
    second = ClassCounts(C_MEROLAE).add(truth[2:], predicted[2:])
    np.testing.assert_array_equal(first.merge(second).table, whole.table)
    assert whole.table.sum() == truth.size
    assert whole.table[1, 2] == ((truth == 1) & (predicted == 2)).sum()


def test_bad_input_counts_nothing():
    counts = ClassCounts(TWO)
    with pytest.raises(InputError, match="outside, inside"):
        counts.add(np.array([0, 2]), np.array([0, 1]))
    with pytest.raises(InputError, match="shape"):
        counts.add(np.array([0, 1]), np.array([0]))
    with pytest.raises(InputError, match="taxonomy"):
        counts.merge(ClassCounts(C_MEROLAE))
    assert not counts.table.any()


def test_stages_are_kept_apart_and_pooled():
    cells = StageCounts(C_MEROLAE)
    for seed, stage in ((0, 1), (1, 1), (2, 5), (3, None)):
        cells.add(*volumes(seed), stage)
    first = ClassCounts(C_MEROLAE).add(*volumes(0)).add(*volumes(1))
    assert cells.per_stage() == {"1": first.iou(), "5": ClassCounts(C_MEROLAE).add(*volumes(2)).iou()}
    everything = first.add(*volumes(2)).add(*volumes(3))
    assert cells.pooled().iou() == everything.iou()
    values = [ClassCounts(C_MEROLAE).add(*volumes(seed)).iou()["plastid"] for seed in range(4)]
    assert cells.per_cell()["plastid"] == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_mean_skips_absent_classes():
    summary = mean_and_sd([{"inside": 0.5}, {"inside": None}, {"inside": 0.7}], TWO)
    assert summary["inside"] == pytest.approx((0.6, 0.1 * 2**0.5))
    assert summary["outside"] is None


def test_tables_are_aligned():
    text = class_table({"iou": {"plastid": 0.91234, "nucleus": None}, "dice": {"plastid": 1.0}})
    assert text.splitlines() == [
        "class      iou   dice",
        "-------  -----  -----",
        "plastid  0.912  1.000",
        "nucleus      -      -",
    ]
    assert format_table(("a", "n"), [("x", 12)]).splitlines()[-1] == "x  12"
    truth = np.ones((2, 2, 2), int)
    assert "adapted Rand error" in cell_table(score_cells(truth, truth))
