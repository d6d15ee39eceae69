"""Finished acquisitions as text and as exit status."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cmseg_core.evaluation import CellScores, cell_table, class_table
from cmseg_core.evaluation.instances import ADVICE, threshold_does_better
from cmseg_core.schema import C_MEROLAE
from flows.console import DONE, FAULT, QUARANTINED

if TYPE_CHECKING:
    from tasks.request import AcquisitionResult


def status_of(results: Iterable[AcquisitionResult]) -> int:
    """Exit status of finished work."""
    results = list(results)
    if any(result.state == "waiting" for result in results):
        return FAULT
    return QUARANTINED if any(r.state == "quarantined" or r.quarantined_cells for r in results) else DONE


def described(result: AcquisitionResult) -> str:
    """The outcome as text, with its scores."""
    if result.state == "quarantined":
        return f"{result.name}: quarantined: {result.reason} ({result.location})"
    if result.state == "waiting":
        return f"{result.name}: waits for the next night, since a disk or a service failed: {result.reason}"
    lines = [f"{result.name}: {result.cells} cells in {result.location}"]
    lines += [f"  cell {cell} is quarantined: {reason}" for cell, reason in result.quarantined_cells.items()]
    if result.shadow:
        lines.append(f"  {result.shadow}")
    if not result.recomputed:
        lines.append("nothing was computed: the same result was there already")
    for table in _tables(result.evaluation or {}):
        lines += ["", table]
    return "\n".join(lines)


def _tables(evaluation: dict[str, Any]) -> list[str]:
    """The tables of an ``evaluation.json``."""
    tables = []
    if evaluation.get("cells"):
        baseline = evaluation.get("baseline")
        tables.append(
            cell_table(
                CellScores.model_validate(evaluation["cells"]),
                CellScores.model_validate(baseline) if baseline else None,
            )
        )
        if baseline and threshold_does_better(evaluation["cells"], baseline):
            tables.append(ADVICE)
    if evaluation.get("organelles"):
        tables.append(class_table({name: _by_id(evaluation["organelles"][name]) for name in ("iou", "dice")}))
    return tables


def _by_id(scores: dict[str, float | None]) -> dict[str, float | None]:
    """Scores by class in the order of the default taxonomy, as far as it knows them: JSON files are sorted by name."""
    known = [name for name in C_MEROLAE.names if name in scores]
    return {name: scores[name] for name in [*known, *(name for name in scores if name not in known)]}
