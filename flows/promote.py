"""A challenger against the champion: both are scored on the same labelled cells or fields, and the gate decides."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prefect import flow, pause_flow_run
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput

from cmseg_core.errors import InputError
from cmseg_core.evaluation.gate import Verdict, check_count, judge
from cmseg_core.schema import PipelineConfig, Workspace
from cmseg_core.tracking import promotion
from cmseg_core.tracking.catalogue import RegisteredVersion, describe, find_alias
from cmseg_core.tracking.promotion import Audit, Party
from cmseg_core.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    MODEL_NAMES,
    PACKAGED,
    ResolvedModel,
    Role,
    ensure_champion,
    full_reference,
    resolve_model,
)
from flows.audit import described
from flows.candidates import DISCIPLINES, Candidate, Ground
from flows.material import find_material
from flows.places import store_address, tracking_uri

log = logging.getLogger("cmseg.flows")

PATIENCE_SECONDS = 24 * 3600
"""So long a challenger that passed waits for an answer."""
ASK_SECONDS = 5
"""So often it looks whether there is one."""


class Answer(RunInput):
    """The form that a person fills in, in the Prefect UI, to resume the run."""

    promote: bool
    """Whether the challenger becomes champion."""
    name: str = ""
    """Of whoever answers."""
    comment: str = ""


@dataclass(frozen=True)
class Contest:
    """Who meets whom.

    Attributes
    ----------
    role : str
    name : str
        Of the registered model.
    challenger : Party
    candidate : Candidate
        The challenger's model.
    incumbent : Candidate, optional
        The champion's, or the packaged one's where that is in use for want of a champion; None where nothing is.
    champion : RegisteredVersion, optional
        As it was when the contest began; None for the packaged model too, until it is registered.
    """

    role: Role
    name: str
    challenger: Party
    candidate: Candidate
    incumbent: Candidate | None
    champion: RegisteredVersion | None


@flow(name="promote", flow_run_name="promote-{challenger}", persist_result=False)
def promote(
    challenger: str,
    dataset: str,
    approval: bool = False,
    config: PipelineConfig | None = None,
    workspace: Workspace | None = None,
) -> Audit:
    """Score a challenger and the champion on the same cells or fields, apply the gate, and move the alias ``champion``.

    Where the registry has no champion for a role, the challenger meets the packaged model, which is then registered as
    the former champion. Where that knows other classes, or there is none, the challenger has no rival.

    Parameters
    ----------
    challenger : str
        ``challenger``, ``models:/name/version`` or ``models:/name@alias``.
    dataset : str
        Name of a data set (``name@version``), or a folder of labelled acquisitions.
    approval : bool
        A challenger that passes waits for a person's yes in the Prefect UI, a day at most.
    config : PipelineConfig, optional
        Settings of the processing that both are scored with; by default those of the environment.
    workspace : Workspace, optional
        By default that of the environment.

    Returns
    -------
    Audit
        The decision, as it is kept in MLflow.

    Raises
    ------
    InputError
        Where a model or the data set cannot be used, they differ in their classes, or the challenger is the champion
        already; nothing is then changed.
    """
    config, workspace = config or PipelineConfig(), workspace or Workspace()
    store = store_address(workspace)
    ground = Ground(
        material=find_material(dataset, store.open, config),
        store=store.open,
        pipeline=config,
        uri=tracking_uri(workspace),
        cache=workspace.workspace / "models",
        unet=workspace.unet,
    )
    audit = _judged(_contest(challenger, ground), ground)
    create_markdown_artifact(key="promotion", markdown=f"```\n{described(audit)}\n```")
    if audit.action == "promoted" and approval:
        audit = _answered(audit)
    return (promotion.promote if audit.action == "promoted" else promotion.keep)(audit, ground.uri)


def _contest(reference: str, ground: Ground) -> Contest:
    """Find both models and make sure that they can be compared on this ground."""
    found = _registered(reference, ground.uri)
    role = cast(Role, found.tags.get("role", "unet"))
    load = DISCIPLINES[role].load
    resolved = resolve_model(found.reference, role, ground.uri, ground.cache)
    candidate = load(resolved.path)
    candidate.check(reference, ground.material)
    champion = find_alias(found.name, CHAMPION, ground.uri)
    rival = _rival(found.name, role, champion, ground.uri, ground.cache)
    if rival is not None and rival.sha256 == resolved.sha256:
        raise InputError(reference, "is the model in use already", "name another challenger")
    incumbent = None if rival is None else load(rival.path)
    if incumbent is not None and incumbent.taxonomy.names != candidate.taxonomy.names:
        if champion is not None:
            reason = f"knows other classes than the champion {champion.reference}"
            mend = f"register it by another name: cmseg models import FILE --role {role} --name NAME"
            raise InputError(reference, f"{reason} ({', '.join(incumbent.taxonomy.names)})", mend)
        incumbent = None  # the packaged model is of no use to those who have other classes
    party = Party(reference=found.reference, version=found.version, sha256=resolved.sha256)
    return Contest(role, found.name, party, candidate, incumbent, champion)


def _registered(reference: str, uri: str) -> RegisteredVersion:
    if reference == CHALLENGER:
        reference = full_reference(reference, "unet", uri)
    if not reference.startswith("models:"):
        mend = "give challenger, models:/name/version or models:/name@alias; `cmseg models import` registers a file"
        raise InputError(reference, "is not in the registry", mend)
    return describe(reference, uri)


def _rival(name: str, role: Role, champion: RegisteredVersion | None, uri: str, cache: Path) -> ResolvedModel | None:
    """The model in use under a name, if there is one."""
    if champion is not None:
        return resolve_model(champion.reference, role, uri, cache)
    if name == MODEL_NAMES[role] and role in PACKAGED:
        return resolve_model("packaged", role, uri, cache)
    return None


def _judged(contest: Contest, ground: Ground) -> Audit:
    """Score both and apply the gate."""
    discipline = DISCIPLINES[contest.role]
    samples = discipline.read(ground, log.info)
    if contest.incumbent is not None:
        check_count(len(samples), discipline.unit)
    log.info("scoring the challenger, %s", contest.challenger.reference)
    scores = contest.candidate.score(samples, ground.pipeline)
    verdict: Verdict | None = None
    if contest.incumbent is not None:
        log.info("scoring the champion%s", "" if contest.champion else ", which is the packaged model")
        before = contest.incumbent.score(samples, ground.pipeline)
        verdict = judge(before, scores, contest.candidate.taxonomy, discipline.unit)
    champion = contest.champion
    if champion is None and contest.incumbent is not None:
        champion = ensure_champion(contest.role, ground.uri)
    names = {one.name for one in scores}
    sides = {"challenger": contest.candidate, "champion": contest.incumbent}
    return Audit(
        action="promoted" if verdict is None or verdict.passed else "refused",
        name=contest.name,
        challenger=contest.challenger,
        champion=None if champion is None else Party.of(champion),
        reasons=("there was no champion to compare with",) if verdict is None else verdict.reasons,
        dataset=ground.material.facts["dataset"],
        dataset_digest=ground.material.facts["dataset_digest"],
        learnt={side: len(names & one.learnt) for side, one in sides.items() if one is not None},
        verdict=verdict,
        settings=ground.pipeline.model_dump(mode="json", include=discipline.settings),
    )


def _answered(audit: Audit) -> Audit:
    """Wait for a person; the record then says who answered what."""
    form = cast(type[Answer], Answer.with_initial_data(description=f"```\n{described(audit)}\n```", promote=False))
    log.info("%s passed and waits for an answer in the Prefect UI", audit.challenger.reference)
    try:
        answer = pause_flow_run(wait_for_input=form, timeout=PATIENCE_SECONDS, poll_interval=ASK_SECONDS)
    except FlowPauseTimeout:
        reason = f"nobody answered within {PATIENCE_SECONDS / 3600:g} hours"
        return audit.model_copy(update={"action": "declined", "reasons": (reason,)})
    given: dict[str, Any] = answer.model_dump(mode="json")
    if answer.promote:
        return audit.model_copy(update={"approval": given})
    reason = f"{answer.name or 'somebody'} said no{f': {answer.comment}' if answer.comment else ''}"
    return audit.model_copy(update={"action": "declined", "reasons": (reason,), "approval": given})
