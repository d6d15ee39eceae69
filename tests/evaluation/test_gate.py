"""Who passes the gate: no class may fall in any stage, nor the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.evaluation.gate import Verdict, judge, verdict_table
from cmseg_core.schema import OrganelleClass, Stage, Taxonomy

NAMES = ("outside", "cell", "dot")
TAXONOMY = Taxonomy(classes=tuple(OrganelleClass(id=i, name=n) for i, n in enumerate(NAMES)))
PAPER = (25, 13, 12, 12, 6)
"""Cells of each stage in Kousaka et al. 2025."""


@dataclass(frozen=True)
class Cell:
    name: str
    stage: Stage | None
    table: np.ndarray


def cell(number: int, stage: int | None, iou: Sequence[float]) -> Cell:
    """A cell in which `cell` and `dot` of 1000 voxels each are found to such parts, and nothing too much."""
    table = np.zeros((3, 3), np.int64)
    for label, part in enumerate(iou, start=1):
        table[label, label] = round(1000 * part)
        table[label, 0] = 1000 - table[label, label]
    return Cell(f"cell {number}", stage, table)  # type: ignore[arg-type]


def cells(ious: Sequence[Sequence[float]], stages: Sequence[int | None]) -> list[Cell]:
    return [cell(n, stage, iou) for n, (stage, iou) in enumerate(zip(stages, ious, strict=True))]


def staged(counts: Sequence[int]) -> list[int]:
    return [stage for stage, count in enumerate(counts, start=1) for _ in range(count)]


def scattered(counts: Sequence[int], seed: int, shift: float = 0.0, spread: float = 0.03) -> tuple[list[Cell], list]:
    """Champion and challenger on cells of very unequal difficulty; each class of each cell differs by chance."""
    rng = np.random.default_rng(seed)
    stages = staged(counts)
    hardness = rng.uniform(0.4, 0.9, (len(stages), 2))
    gain = shift + rng.normal(0, spread, hardness.shape)
    return cells(hardness - gain / 2, stages), cells(hardness + gain / 2, stages)


def passed(verdict: Verdict) -> bool:
    assert verdict.passed == (not verdict.reasons)
    return verdict.passed


def test_a_better_challenger_passes() -> None:
    verdict = judge(*scattered(PAPER, seed=1, shift=0.03), TAXONOMY)
    assert passed(verdict)
    assert verdict.challenger_mean == pytest.approx(verdict.champion_mean + 0.03, abs=0.01)
    assert {(c.name, c.stage) for c in verdict.changes} == {(n, s) for n in NAMES[1:] for s in (None, 1, 2, 3, 4, 5)}


def test_one_that_scores_the_same_passes() -> None:
    champion, _ = scattered(PAPER, seed=1)
    assert passed(judge(champion, champion, TAXONOMY))


@pytest.mark.parametrize("counts", [PAPER, (10, 10, 10, 10, 2), (3, 3, 3, 3, 1)])
def test_a_class_that_falls_in_one_stage_is_named_though_the_mean_rises(counts: tuple[int, ...]) -> None:
    champion, better = scattered(counts, seed=2, shift=0.05, spread=0.01)
    challenger = [
        Cell(one.name, one.stage, one.table if one.stage != 5 else cell(0, 5, (0.9, 0.2)).table) for one in better
    ]
    champion = [
        Cell(one.name, one.stage, one.table if one.stage != 5 else cell(0, 5, (0.85, 0.5)).table) for one in champion
    ]
    verdict = judge(champion, challenger, TAXONOMY)
    assert not passed(verdict)
    assert verdict.challenger_mean > verdict.champion_mean
    (reason,) = verdict.reasons
    assert reason.startswith("dot in stage 5 falls from 0.500 to 0.200 ")
    fallen = [change for change in verdict.changes if change.falls]
    assert [(change.name, change.stage, change.lent) for change in fallen] == [("dot", 5, counts[-1] < 5)]


def test_a_worse_challenger_is_refused_over_all_cells_and_in_stages() -> None:
    verdict = judge(*scattered(PAPER, seed=3, shift=-0.05), TAXONOMY)
    assert not passed(verdict)
    assert any(reason.startswith("cell over all cells falls") for reason in verdict.reasons)
    assert any("in stage 1" in reason for reason in verdict.reasons)
    assert verdict.reasons[-1].startswith("the mean over the classes falls")


def test_a_fall_within_the_interval_that_lowers_the_mean_names_where_most_was_lost() -> None:
    champion = cells([(0.8, 0.5)] * 5, [1, 2, 3, 4, 5])
    challenger = cells([(0.8, 0.5)] * 4 + [(0.8, 0.48)], [1, 2, 3, 4, 5])
    verdict = judge(champion, challenger, TAXONOMY)
    (reason,) = verdict.reasons
    assert "most in dot in stage 5: from 0.500 to 0.480" in reason


def test_pairing_finds_a_fall_that_the_scatter_of_the_cells_would_hide() -> None:
    champion, challenger = scattered((20, 0, 0, 0, 0), seed=4, shift=-0.03, spread=0.01)
    alone = [np.diagonal(one.table)[1:] / 1000 for one in champion]
    assert np.std(alone, axis=0).min() / np.sqrt(20) > 0.025  # of one model's score alone
    assert all(change.falls for change in judge(champion, challenger, TAXONOMY).changes)


def test_small_stages_are_lent_the_spread_of_all_cells() -> None:
    champion, challenger = scattered((20, 1, 0, 0, 0), seed=5, shift=0.02, spread=0.15)
    stage_2 = [change for change in judge(champion, challenger, TAXONOMY).changes if change.stage == 2]
    assert len(stage_2) == 2
    for change in stage_2:
        assert change.lent
        assert 0.4 < change.interval[1] - change.interval[0] < 0.8  # of a single cell: about 4 times 0.15


def test_cells_of_no_stage_count_over_all_cells_only() -> None:
    champion, challenger = (
        [Cell(one.name, None, one.table) for one in side] for side in scattered((20, 0, 0, 0, 0), 6, shift=-0.1)
    )
    verdict = judge(champion, challenger, TAXONOMY)
    assert {change.stage for change in verdict.changes} == {None}
    assert not passed(verdict)
    assert "over all cells" in verdict.reasons[-1]


def test_a_class_made_up_where_there_is_none_counts_as_a_fall() -> None:
    champion = cells([(0.8, 0.5)] * 6 + [(0.8, 0.0)] * 6, staged((6, 6)))
    for one in champion[6:]:
        one.table[2] = 0  # neither truth nor champion has a dot in stage 2
    challenger = [Cell(one.name, one.stage, one.table.copy()) for one in champion]
    for one in challenger[6:]:
        one.table[0, 2] = 50
    verdict = judge(champion, challenger, TAXONOMY)
    assert not passed(verdict)
    assert verdict.reasons[-2].startswith("dot in stage 2 falls from 1.000 to 0.000")


def test_a_class_that_nobody_has_is_left_out() -> None:
    champion, challenger = scattered((8, 0, 0, 0, 0), seed=7, shift=0.05)
    for one in (*champion, *challenger):
        one.table[2] = 0
    verdict = judge(champion, challenger, TAXONOMY)
    assert passed(verdict)
    assert {change.name for change in verdict.changes} == {"cell"}
    assert verdict.champion_mean == next(c.champion for c in verdict.changes if c.stage is None)


def test_what_cannot_be_compared_is_bad_input() -> None:
    champion, challenger = scattered((3, 0, 0, 0, 0), seed=8)
    with pytest.raises(InputError, match="differ"):
        judge(champion, challenger[:2], TAXONOMY)
    with pytest.raises(InputError, match="too few to compare models: 1 cell;"):
        judge(champion[:1], challenger[:1], TAXONOMY)
    empty = cells([(0, 0)] * 3, [1, 1, 1])
    for one in empty:
        one.table[:] = 0
    with pytest.raises(InputError, match="hold no class but background"):
        judge(empty, empty, TAXONOMY)


def test_a_verdict_is_plain_json_and_a_table() -> None:
    verdict = judge(*scattered((6, 2, 0, 0, 0), seed=9, shift=-0.2), TAXONOMY)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    lines = verdict_table(verdict).splitlines()
    assert lines[0].split() == ["class", "all", "cells", "stage", "1", "stage", "2"]
    assert [line.split()[0] for line in lines[2:]] == ["cell", "dot", "mean"]
    assert all("*" in line for line in lines[2:])


def share_passed(counts: Sequence[int], shift: float, rounds: int = 60) -> float:
    verdicts = [judge(*scattered(counts, seed, shift=shift), TAXONOMY) for seed in range(100, 100 + rounds)]
    return float(np.mean([verdict.passed for verdict in verdicts]))


@pytest.mark.parametrize("counts", [PAPER, (1, 1, 1, 1, 1), (2, 2, 2, 2, 2)])
def test_the_gate_lets_the_better_through_and_keeps_the_worse_out(counts: tuple[int, ...]) -> None:
    assert share_passed(counts, shift=0.03) > 0.9
    assert share_passed(counts, shift=-0.03) < 0.1
