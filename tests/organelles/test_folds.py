from collections import Counter

import pytest

from cmseg_core.errors import InputError
from cmseg_core.organelles.folds import cross_validation, section_counts
from cmseg_core.schema import Stage

PAPER: list[Stage | None] = [1] * 25 + [2] * 13 + [3] * 12 + [4] * 12 + [5] * 6


def test_the_papers_cells_make_the_papers_cases() -> None:
    folds = cross_validation(PAPER)
    assert len(folds) == 6
    for fold in folds:
        assert len(fold.training) == 63
        assert sorted(PAPER[i] or 0 for i in fold.validation) == [1, 2, 3, 4, 5]
        assert sorted((*fold.training, *fold.validation)) == list(range(68))
    assert max(Counter(i for fold in folds for i in fold.validation).values()) == 1


def test_the_counts_are_those_of_table_one() -> None:
    fold = cross_validation(PAPER)[0]
    counts = section_counts(fold, PAPER, [300] * 68, [100] * 68)
    assert [cells for cells, _, _ in counts.values()] == [24, 12, 11, 11, 5, 63]
    assert counts["total"] == (63, 63 * 300, 500)


def test_the_seed_draws_the_cells() -> None:
    assert cross_validation(PAPER, seed=1) == cross_validation(PAPER, seed=1) != cross_validation(PAPER, seed=2)


def test_a_cell_of_unknown_stage_is_never_validated_with() -> None:
    folds = cross_validation([*PAPER, None])
    assert all(68 in fold.training for fold in folds)


def test_without_stages_every_cell_is_validated_with_once() -> None:
    folds = cross_validation([None] * 20)
    assert sorted(i for fold in folds for i in fold.validation) == list(range(20))
    assert {len(fold.validation) for fold in folds} == {3, 4}


@pytest.mark.parametrize(
    ("stages", "words"), [(PAPER[:-1], "5 cells of stage 5"), ([None], "has 1 cell;"), ([], "has 0 cells")]
)
def test_too_few_cells_are_refused(stages: list[Stage | None], words: str) -> None:
    with pytest.raises(InputError, match=words):
        cross_validation(stages)
