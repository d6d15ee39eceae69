"""Whether a challenger may take the champion's place: no class may fall in any stage, nor the mean over the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from cmseg_core.errors import InputError
from cmseg_core.evaluation.bootstrap import LEVEL, RESAMPLES, interval, pooled_iou, resampled_iou
from cmseg_core.evaluation.tables import format_table
from cmseg_core.schema import STAGES, Frozen, Stage, Taxonomy

FEW = 5
"""Of fewer cells all draws of a bootstrap lie between the worst and the best cell, which says little of the spread."""
CELL_SPREAD = 0.06
"""Standard deviation, between two models of like worth, of the difference in IoU of one class in one cell. Measured on
16 simulated cells between two packaged U-Nets, one of which goes on from the other: .02 to .09 by class, .06 in root
mean square."""


Unit = Literal["cell", "field"]
"""What models are scored on."""


class Scored(Protocol):
    """What the gate needs to know of a cell or a field: a `CellRecord` has it."""

    @property
    def name(self) -> str: ...

    @property
    def stage(self) -> Stage | None: ...

    @property
    def table(self) -> NDArray[np.int64]: ...


class Change(Frozen):
    """What becomes of one class in the cells of one stage.

    Attributes
    ----------
    name : str
        Of the class.
    stage : int, optional
        None stands for all cells, those of no stage too.
    unit : {"cell", "field"}
    cells : int
        How many, or how many fields.
    champion, challenger : float
        IoU pooled over the cells; 1 where neither truth nor model has the class.
    interval : tuple of float
        Of the difference, challenger less champion.
    lent : bool
        The spread of the interval is that of all cells, since there are few in the stage.
    falls : bool
        The whole interval lies below 0.
    """

    name: str
    stage: Stage | None
    unit: Unit = "cell"
    cells: int
    champion: float
    challenger: float
    interval: tuple[float, float]
    lent: bool
    falls: bool

    @property
    def where(self) -> str:
        """The cells in words."""
        return f"over all {self.unit}s" if self.stage is None else f"in stage {self.stage}"

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.name} {self.where} falls from {self.champion:.3f} to {self.challenger:.3f} "
            f"(by {-high:.3f} to {-low:.3f}, {LEVEL:.0%}, {_counted(self.cells, self.unit)})"
        )


class Verdict(Frozen):
    """What the gate says of a challenger, with every figure.

    Attributes
    ----------
    passed : bool
    reasons : tuple of str
        Why it did not pass: each names a class and a stage; empty where it passed.
    cells : int
        How many, or how many fields.
    champion_mean, challenger_mean : float
        IoU pooled over all cells, mean over the foreground classes that truth or a model has.
    changes : tuple of Change
        Every foreground class, over all cells and in each stage that occurs.
    level : float
        Share of the differences that an interval holds.
    resamples : int
        Draws of the bootstrap.
    """

    passed: bool
    reasons: tuple[str, ...]
    cells: int
    champion_mean: float
    challenger_mean: float
    changes: tuple[Change, ...]
    level: float = LEVEL
    resamples: int = RESAMPLES


def judge(champion: Sequence[Scored], challenger: Sequence[Scored], taxonomy: Taxonomy, unit: Unit = "cell") -> Verdict:
    """Compare two models on the same labelled cells, or fields.

    The challenger passes where no foreground class falls beyond its interval, neither over all cells nor in a stage,
    and where the mean over the foreground classes does not fall. The interval is that of the difference in pooled IoU,
    by a bootstrap over the cells which draws the same cells for both models: what makes a cell hard is hard for both,
    so that the difference is known better than either score. A class falls beyond it where the whole interval lies
    below 0. A challenger that scores the same passes.

    Percentiles of a bootstrap lie too close together where the draws are of few cells. They are taken so much farther
    out as Student's t lies beyond the normal distribution (expanded percentiles [2]_).

    With fewer than five cells in a stage the interval takes the spread of as many cells drawn from all, and is no
    narrower than it would be if the difference of a single cell had a standard deviation of 0.06.

    Parameters
    ----------
    champion, challenger : sequence of Scored
        The same cells in the same order: their confusion tables, voxels by true class (rows) and found class (columns).
    taxonomy : Taxonomy
        Of the rows and columns: classes of voxels, or whatever else is counted.
    unit : {"cell", "field"}

    Returns
    -------
    Verdict

    Raises
    ------
    InputError
        Where there are fewer than two cells, or they differ, or none holds a foreground class.

    References
    ----------
    .. [1] Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: percentile intervals (13), paired data (8).
    .. [2] Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69, 2015.
    """
    _check(champion, challenger, unit)
    before, after = (np.stack([cell.table for cell in cells]) for cells in (champion, challenger))
    stages = np.array([cell.stage or 0 for cell in champion])
    changes = _changes(before, after, np.ones(len(stages), bool), None, taxonomy, unit)
    for stage in STAGES:
        if (stages == stage).any():
            changes += _changes(before, after, stages == stage, stage, taxonomy, unit)
    overall = [change for change in changes if change.stage is None]
    if not overall:
        mend = f"score on {unit}s that have {' or '.join(c.name for c in taxonomy.foreground)}"
        raise InputError(f"the {unit}s", "hold no class but background", mend)
    means = np.mean([(change.champion, change.challenger) for change in overall], axis=0)
    reasons = [str(change) for change in changes if change.falls]
    if means[1] < means[0]:
        reasons.append(_fallen_mean(means, changes))
    return Verdict(
        passed=not reasons,
        reasons=tuple(reasons),
        cells=len(champion),
        champion_mean=float(means[0]),
        challenger_mean=float(means[1]),
        changes=tuple(changes),
    )


def check_count(count: int, unit: Unit) -> None:
    """Raise `InputError` where so many cells or fields are too few to compare models on."""
    if count < 2:
        reason = f"are too few to compare models: {_counted(count, unit)}"
        raise InputError(f"the {unit}s", reason, f"give more labelled {unit}s")


def verdict_table(verdict: Verdict) -> str:
    """The champion's IoU and what the challenger changes, by class and stage; a star marks what falls."""
    stages = sorted({change.stage or 0 for change in verdict.changes})
    names = list(dict.fromkeys(change.name for change in verdict.changes))
    known = {(change.name, change.stage or 0): change for change in verdict.changes}
    rows = [[name, *(_entry(known.get((name, stage))) for stage in stages)] for name in names]
    difference = verdict.challenger_mean - verdict.champion_mean
    mean = f"{verdict.champion_mean:.3f} {difference:+.3f}{'*' if difference < 0 else ' '}"
    rows.append(["mean", mean, *(None for _ in stages[1:])])
    everything = f"all {verdict.changes[0].unit}s"
    return format_table(["class", *(f"stage {stage}" if stage else everything for stage in stages)], rows)


def _entry(change: Change | None) -> str | None:
    if change is None:
        return None
    return f"{change.champion:.3f} {change.challenger - change.champion:+.3f}{'*' if change.falls else ' '}"


def _check(champion: Sequence[Scored], challenger: Sequence[Scored], unit: Unit) -> None:
    if [(c.name, c.stage) for c in champion] != [(c.name, c.stage) for c in challenger]:
        raise InputError(f"the {unit}s", "of the two models differ", "score both models on the same data set")
    check_count(len(champion), unit)


def _changes(
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    stage: Stage | None,
    taxonomy: Taxonomy,
    unit: Unit,
) -> list[Change]:
    """Every foreground class that truth or a model has in the chosen cells."""
    cells, few = int(chosen.sum()), bool(chosen.sum() < FEW)
    one, two = before[chosen].sum(axis=0), after[chosen].sum(axis=0)
    scores = np.stack([_iou(one), _iou(two)])
    drawn = _differences(before, after, cells) if few else _differences(before[chosen], after[chosen], cells)
    level = _expanded(len(before) if few else cells)
    found = []
    for c in taxonomy.foreground:
        if not (one[c.id].any() or one[:, c.id].any() or two[:, c.id].any()):
            continue
        difference = float(scores[1, c.id] - scores[0, c.id])
        samples = difference + drawn[:, c.id] - drawn[:, c.id].mean() if few else drawn[:, c.id]
        ends = interval(samples, level)
        assert ends is not None  # no draw is NaN
        if few:
            reach = ndtri((1 + LEVEL) / 2) * CELL_SPREAD / np.sqrt(cells)
            ends = min(ends[0], difference - reach), max(ends[1], difference + reach)
        found.append(
            Change(
                name=c.name,
                stage=stage,
                unit=unit,
                cells=cells,
                champion=float(scores[0, c.id]),
                challenger=float(scores[1, c.id]),
                interval=ends,
                lent=few,
                falls=ends[1] < 0,
            )
        )
    return found


def _expanded(cells: int) -> float:
    """The share of draws to take in, so that an interval of so many cells holds the difference in a share LEVEL."""
    reach = np.sqrt(cells / (cells - 1)) * stdtrit(cells - 1, (1 + LEVEL) / 2)
    return float(1 - 2 * ndtr(-reach))


def _differences(before: NDArray[np.int64], after: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Challenger less champion, in draws of so many cells: float64 (resamples, classes)."""
    one, two = (np.nan_to_num(resampled_iou(tables, size=size), nan=1.0) for tables in (before, after))
    return two - one


def _iou(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU by class; 1 where nothing is to be found and nothing was, so that a class made up counts as a fall."""
    return np.nan_to_num(pooled_iou(table), nan=1.0)


def _fallen_mean(means: NDArray[np.float64], changes: Sequence[Change]) -> str:
    """The fall of the mean, with the class and stage where most was lost."""
    staged = [change for change in changes if change.stage is not None] or changes
    worst = min(staged, key=lambda change: change.challenger - change.champion)
    return (
        f"the mean over the classes falls from {means[0]:.3f} to {means[1]:.3f}, "
        f"most in {worst.name} {worst.where}: from {worst.champion:.3f} to {worst.challenger:.3f}"
    )


def _counted(count: int, unit: Unit) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'}"
