"""Overlap of organelle classes: IoU and Dice, pooled, per cell and per cell-cycle stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np

from cmseg_core.errors import InputError
from cmseg_core.schema import STAGES, Stage, Taxonomy

_CHUNK_VOXELS = 1 << 22
"""Voxels counted at a time; the counting needs eight bytes for each."""

Scores = dict[str, float | None]


class ClassCounts:
    """Streaming confusion counts of one taxonomy: add volumes in any number of parts, then read the scores.

    Parameters
    ----------
    taxonomy : Taxonomy

    Attributes
    ----------
    table : ndarray of int64, shape (classes, classes)
        Voxels by true class (rows) and predicted class (columns).
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self.table = np.zeros((len(taxonomy), len(taxonomy)), np.int64)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> Self:
        """Count the voxels of one volume, or of a part of one.

        Parameters
        ----------
        truth, predicted : ndarray of integers, equal shapes
            Class ids of the taxonomy.

        Returns
        -------
        ClassCounts
            Itself.

        Raises
        ------
        InputError
            Where the shapes differ or an id is not in the taxonomy; nothing is then counted.
        """
        if truth.shape != predicted.shape:
            raise InputError("truth", f"has shape {truth.shape}, the result {predicted.shape}", "give equal shapes")
        classes = len(self.taxonomy)
        table = np.zeros_like(self.table)
        one, two = truth.reshape(-1), predicted.reshape(-1)
        for start in range(0, one.size, _CHUNK_VOXELS):
            t, p = one[start : start + _CHUNK_VOXELS], two[start : start + _CHUNK_VOXELS]
            for name, ids in (("truth", t), ("predicted", p)):
                if ids.min() < 0 or ids.max() >= classes:
                    mend = f"the taxonomy has the ids 0 to {classes - 1}: {', '.join(self.taxonomy.names)}"
                    raise InputError(name, f"holds class ids from {ids.min()} to {ids.max()}", mend)
            table += np.bincount(t.astype(np.int64) * classes + p, minlength=classes**2).reshape(classes, classes)
        self.table += table
        return self

    def merge(self, other: ClassCounts) -> Self:
        """Add the counts of another set of volumes of the same taxonomy."""
        if other.taxonomy.names != self.taxonomy.names:
            raise InputError(
                "counts", f"are of the classes {', '.join(other.taxonomy.names)}", "merge one taxonomy only"
            )
        self.table += other.table
        return self

    def iou(self) -> Scores:
        """Intersection over union of each class, background too; None where neither volume holds the class."""
        shared = np.diagonal(self.table)
        return self._ratio(shared, self.table.sum(axis=0) + self.table.sum(axis=1) - shared)

    def dice(self) -> Scores:
        """Dice coefficient of each class, background too; None where neither volume holds the class."""
        return self._ratio(2 * np.diagonal(self.table), self.table.sum(axis=0) + self.table.sum(axis=1))

    def _ratio(self, upper: np.ndarray, lower: np.ndarray) -> Scores:
        return {name: float(a / b) if b else None for name, a, b in zip(self.taxonomy.names, upper, lower, strict=True)}


class StageCounts:
    """Overlap counts kept apart by cell-cycle stage, as in the paper's Table 3.

    Parameters
    ----------
    taxonomy : Taxonomy
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self._stages: dict[Stage | None, ClassCounts] = {}
        self._cells: list[Scores] = []

    def add(self, truth: np.ndarray, predicted: np.ndarray, stage: Stage | None = None) -> Self:
        """Count one cell; see :meth:`ClassCounts.add`. A cell of no known stage counts in the pooled scores only."""
        cell = ClassCounts(self.taxonomy).add(truth, predicted)
        self._stages.setdefault(stage, ClassCounts(self.taxonomy)).merge(cell)
        self._cells.append(cell.iou())
        return self

    def pooled(self) -> ClassCounts:
        """The counts of all cells together."""
        counts = ClassCounts(self.taxonomy)
        for stage in self._stages.values():
            counts.merge(stage)
        return counts

    def per_stage(self) -> dict[str, Scores]:
        """IoU of each class, pooled over the cells of a stage; stages without cells are left out."""
        return {str(stage): self._stages[stage].iou() for stage in STAGES if stage in self._stages}

    def per_cell(self) -> dict[str, tuple[float, float] | None]:
        """Mean and standard deviation over cells of the IoU of each class."""
        return mean_and_sd(self._cells, self.taxonomy)


def mean_and_sd(
    cells: Iterable[Mapping[str, float | None]], taxonomy: Taxonomy
) -> dict[str, tuple[float, float] | None]:
    """Mean and standard deviation of per-cell scores.

    Parameters
    ----------
    cells : iterable of mapping
        One mapping of class name to score (or None) a cell.
    taxonomy : Taxonomy

    Returns
    -------
    dict
        Class name to mean and sample standard deviation (0 for one cell) over the cells that hold the class; None
        where no cell does.
    """
    rows = list(cells)
    summary: dict[str, tuple[float, float] | None] = {}
    for name in taxonomy.names:
        values = [v for row in rows if (v := row.get(name)) is not None]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        summary[name] = (float(np.mean(values)), deviation) if values else None
    return summary
