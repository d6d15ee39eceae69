"""Cross-validation: which cells each case trains on, and which it is scored with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmseg_core.errors import InputError
from cmseg_core.schema import STAGES, Stage

CASES = 6


@dataclass(frozen=True)
class Fold:
    """One case of a cross-validation.

    Attributes
    ----------
    case : int
        From 1.
    training, validation : tuple of int
        Indices of cells; together all of them.
    """

    case: int
    training: tuple[int, ...]
    validation: tuple[int, ...]


def cross_validation(stages: Sequence[Stage | None], cases: int = CASES, seed: int = 0) -> tuple[Fold, ...]:
    """Part cells into cases as Kousaka et al. 2025 do: each is validated with one cell of every stage.

    No cell is validated with twice. Cells of unknown stage are trained on in every case, unless no stage is known at
    all: then each case is validated with an equal share of the cells.

    Parameters
    ----------
    stages : sequence of int or None
        Stage of each cell.
    cases : int
    seed : int
        Of the draw.

    Returns
    -------
    tuple of Fold

    Raises
    ------
    InputError
        Where a stage, or the whole, has fewer cells than there are cases.
    """
    rng = np.random.default_rng(seed)
    known = sorted({stage for stage in stages if stage is not None})
    parts: list[list[int]] = [[] for _ in range(cases)]
    if known:
        for stage in known:
            members = [i for i, s in enumerate(stages) if s == stage]
            if len(members) < cases:
                reason = f"has {len(members)} {'cell' if len(members) == 1 else 'cells'} of stage {stage}"
                raise InputError("data set", reason, f"{cases} cases need {cases} of every stage that occurs: add some")
            for part, member in zip(parts, rng.permutation(members)[:cases], strict=True):
                part.append(int(member))
    else:
        if len(stages) < cases:
            reason = f"has {len(stages)} {'cell' if len(stages) == 1 else 'cells'}"
            raise InputError("data set", reason, f"{cases} cases need {cases} cells at least: add some")
        parts = [[int(i) for i in share] for share in np.array_split(rng.permutation(len(stages)), cases)]
    return tuple(
        Fold(number, tuple(i for i in range(len(stages)) if i not in set(part)), tuple(sorted(part)))
        for number, part in enumerate(parts, start=1)
    )


def section_counts(
    fold: Fold, stages: Sequence[Stage | None], training_sections: Sequence[int], validation_sections: Sequence[int]
) -> dict[str, tuple[int, int, int]]:
    """Cells and sections of a case, in the form of Table 1 of Kousaka et al. 2025.

    Parameters
    ----------
    fold : Fold
    stages : sequence of int or None
    training_sections, validation_sections : sequence of int
        Sections that each cell gives to a training (all directions) and to a validation (one direction).

    Returns
    -------
    dict
        Stage (``"1"`` to ``"5"``, those that occur) and ``"total"`` to the number of cells trained on, of sections
        trained on, and of sections validated with.
    """
    rows: dict[str, tuple[int, int, int]] = {}
    for key in [*(stage for stage in STAGES if stage in stages), None]:
        training = [i for i in fold.training if key is None or stages[i] == key]
        validation = [i for i in fold.validation if key is None or stages[i] == key]
        rows["total" if key is None else str(key)] = (
            len(training),
            sum(training_sections[i] for i in training),
            sum(validation_sections[i] for i in validation),
        )
    return rows
