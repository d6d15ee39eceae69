"""Decisions on champions as text."""

from __future__ import annotations

from collections.abc import Sequence

from cmseg_core.evaluation.gate import verdict_table
from cmseg_core.evaluation.tables import format_table
from cmseg_core.tracking.promotion import Audit


def described(audit: Audit) -> str:
    """A decision, with its reasons and figures."""
    lines = [_headline(audit), *(f"  {reason}" for reason in audit.reasons)]
    for side, count in audit.learnt.items():
        if count:
            lines.append(f"  note: the {side} was trained on {count} of these, going by their names, which flatters it")
    if audit.verdict is not None:
        lines += ["", f"IoU of the champion, and what the challenger changes ({audit.dataset}); * falls", ""]
        lines.append(verdict_table(audit.verdict))
    return "\n".join(lines)


def audit_table(audits: Sequence[Audit]) -> str:
    """Decisions, one a line, the oldest first; below them the reasons."""
    if not audits:
        return "no model was promoted, refused or rolled back yet"
    head = ("when", "decision", "model", "champion", "data set", "mean before", "mean after", "who")
    rows = [
        (
            audit.when,
            audit.action if audit.completed else f"{audit.action} (broken off)",
            audit.challenger.reference,
            audit.champion.reference if audit.champion else None,
            audit.dataset,
            audit.verdict.champion_mean if audit.verdict else None,
            audit.verdict.challenger_mean if audit.verdict else None,
            audit.who,
        )
        for audit in audits
    ]
    reasons = [f"{audit.when} {audit.challenger.reference}: {reason}" for audit in audits for reason in audit.reasons]
    return "\n".join([format_table(head, rows), *([""] if reasons else []), *reasons])


def _headline(audit: Audit) -> str:
    new, old = audit.challenger.reference, audit.champion.reference if audit.champion else None
    match audit.action:
        case "promoted":
            return f"promoted: {new} is champion" + (f" in place of {old}" if old else "")
        case "rolled back":
            return f"rolled back: {new} is champion again" + (f", in place of {old}" if old else "")
        case action:
            return f"{action}: {new}; {old or 'nobody'} stays champion"
