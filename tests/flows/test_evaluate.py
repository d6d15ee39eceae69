"""What ``cmseg evaluate`` says to people."""

from __future__ import annotations

import pytest

from cmseg_core.evaluation.trials import summarise
from flows.evaluate import described
from tests.evaluation.test_trials import TAXONOMY, record


@pytest.mark.parametrize(
    ("fused", "single", "said"),
    [
        (0, (1, 2, 1), "fusing is at least as good as the best single direction in every class (by 0.019 or more)"),
        (1, (3, 2, 0), "fusing lost to the best single direction in cell (-0.019), dot (-0.400)"),
        (0, (0, None, None), "sections across one axis only: nothing to fuse"),
    ],
)
def test_one_line_says_whether_fusing_lost(fused: int, single, said: str) -> None:
    text = described(summarise([record(fused, single, 1)], TAXONOMY), TAXONOMY)
    assert said in text.splitlines()


def test_the_best_direction_stands_beside_all_three() -> None:
    text = described(summarise([record(0, (1, 2, 1), 1)], TAXONOMY), TAXONOMY)
    row = next(line for line in text.splitlines() if line.startswith("dot"))
    assert row.split()[1:5] == ["0.600", "0.600", "z", "1.000"]
