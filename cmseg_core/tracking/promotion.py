"""Who the champion is, and the record of every decision on it.

Promotion and rollback move the alias ``champion`` in one step. Former champions stand in a tag of the registered model,
the last one under the alias ``former`` too, so that rollbacks lead back one by one. A decision is written down, as a
run with the file ``audit.json``, before the alias moves: no champion comes without a record.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import cmseg_core
from cmseg_core.errors import InputError
from cmseg_core.evaluation.gate import Verdict
from cmseg_core.schema import Frozen
from cmseg_core.tracking.catalogue import RegisteredVersion, describe, find_alias, search
from cmseg_core.tracking.connection import connect, experiment_id, reported
from cmseg_core.tracking.registry import CHALLENGER, CHAMPION, FORMER

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "cmseg-promotions"
RECORD = "audit.json"
FORMER_TAG = "former_champions"
Action = Literal["promoted", "refused", "declined", "rolled back"]


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Party(Frozen):
    """A version that a decision is about."""

    reference: str
    version: str
    sha256: str | None

    @classmethod
    def of(cls, version: RegisteredVersion) -> Party:
        """The version as the registry has it."""
        return cls(reference=version.reference, version=version.version, sha256=version.tags.get("sha256"))


class Audit(Frozen):
    """The record of one decision.

    Attributes
    ----------
    action : {"promoted", "refused", "declined", "rolled back"}
        Declined: it passed the gate, and a person said no, or nobody said yes in time.
    name : str
        Of the registered model.
    challenger : Party
        Who was to become champion; of a rollback the former champion that came back.
    champion : Party, optional
        Who was champion before the decision; None where nobody was.
    reasons : tuple of str
        In words.
    dataset, dataset_digest : str, optional
        What both were scored on.
    learnt : dict of str to int
        How many of the cells, going by their names, the challenger and the champion were trained on.
    verdict : Verdict, optional
        The figures; None where there was nothing to compare with.
    settings : dict
        Of the processing, with which both were scored.
    approval : dict, optional
        What a person answered: ``promote``, ``name``, ``comment``.
    who, when, code : str
        User and machine, time (UTC, ISO 8601), version of cmseg.
    run_id : str
        Of the run that keeps the record.
    completed : bool
        False where the process ended before the alias had moved.
    """

    action: Action
    name: str
    challenger: Party
    champion: Party | None
    reasons: tuple[str, ...] = ()
    dataset: str | None = None
    dataset_digest: str | None = None
    learnt: dict[str, int] = Field(default_factory=dict)
    verdict: Verdict | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    approval: dict[str, Any] | None = None
    who: str = Field(default_factory=_who)
    when: str = Field(default_factory=_now)
    code: str = cmseg_core.__version__
    run_id: str = ""
    completed: bool = True


def promote(audit: Audit, tracking_uri: str) -> Audit:
    """Write the record down, and let the challenger be champion.

    Parameters
    ----------
    audit : Audit
        Its `champion` must still be the champion.
    tracking_uri : str

    Returns
    -------
    Audit
        With the run that keeps it.

    Raises
    ------
    InputError
        Where another champion came meanwhile; nothing is then written.
    """
    client, name, new = connect(tracking_uri), audit.name, audit.challenger.version
    with reported(name):
        now = find_alias(name, CHAMPION, tracking_uri)
        expected = audit.champion.version if audit.champion else None
        if (now.version if now else None) != expected:
            raise InputError(
                name, "got another champion while its challenger was scored", "compare with that one: run it again"
            )
        with _written(client, audit, tracking_uri) as kept:
            if now is not None:
                _set_former(client, name, [*_formers(client, name), now.version])
            client.set_registered_model_alias(name, CHAMPION, new)
            if CHALLENGER in client.get_model_version(name, new).aliases:
                client.delete_registered_model_alias(name, CHALLENGER)
    return kept


def keep(audit: Audit, tracking_uri: str) -> Audit:
    """Write down a decision that moves nothing: the challenger was refused, or declined."""
    client = connect(tracking_uri)
    with reported(audit.name), _written(client, audit, tracking_uri) as kept:
        return kept


def former_champion(name: str, tracking_uri: str) -> RegisteredVersion:
    """Who would be champion after a rollback.

    Raises
    ------
    InputError
        Where there is no such model, or nobody was champion before.
    """
    champion = find_alias(name, CHAMPION, tracking_uri)
    with reported(name):
        formers = [v for v in _formers(connect(tracking_uri), name) if champion is None or v != champion.version]
    if not formers:
        raise InputError(name, "has no former champion", "see `cmseg models audit` for what was promoted")
    return describe(f"models:/{name}/{formers[-1]}", tracking_uri)


def rollback(name: str, tracking_uri: str) -> Audit:
    """Let the former champion be champion again; another rollback leads to the one before it.

    Raises
    ------
    InputError
        Where nobody was champion before.
    """
    client = connect(tracking_uri)
    former = former_champion(name, tracking_uri)
    champion = find_alias(name, CHAMPION, tracking_uri)
    audit = Audit(
        action="rolled back",
        name=name,
        challenger=Party.of(former),
        champion=None if champion is None else Party.of(champion),
    )
    with reported(name), _written(client, audit, tracking_uri) as kept:
        client.set_registered_model_alias(name, CHAMPION, former.version)
        formers = _formers(client, name)
        while formers.pop() != former.version:
            pass
        _set_former(client, name, formers)
    return kept


def read_audits(tracking_uri: str, name: str | None = None) -> list[Audit]:
    """Every decision, or those on one registered model, the oldest first.

    Raises
    ------
    InputError
        Where a record is gone, or cannot be understood.
    """
    client = connect(tracking_uri)
    with reported(tracking_uri):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        found, token = [], None
        while True:
            page = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"], page_token=token)
            found += [run for run in page if name is None or run.data.tags.get("model") == name]
            token = page.token
            if not token:
                break
    return [_read(run, tracking_uri) for run in found]


@contextmanager
def _written(client: MlflowClient, audit: Audit, tracking_uri: str) -> Iterator[Audit]:
    """Keep a record; its run is finished once what it tells of is done."""
    where = experiment_id(client, tracking_uri, EXPERIMENT)
    title = f"{audit.action} {audit.challenger.reference}"
    run_id = client.create_run(where, run_name=title, tags={"model": audit.name, "action": audit.action}).info.run_id
    audit = audit.model_copy(update={"run_id": run_id})
    client.log_dict(run_id, audit.model_dump(mode="json", exclude={"completed"}), RECORD)
    if audit.verdict is not None:
        client.log_metric(run_id, "champion_mean_iou", audit.verdict.champion_mean)
        client.log_metric(run_id, "challenger_mean_iou", audit.verdict.challenger_mean)
    status = "FAILED"
    try:
        yield audit
        subject = audit.champion if audit.action == "rolled back" else audit.challenger
        if subject is not None:
            client.set_model_version_tag(audit.name, subject.version, "decision", audit.action)
            client.set_model_version_tag(audit.name, subject.version, "decision_run", run_id)
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status=status)


def _read(run: Any, tracking_uri: str) -> Audit:
    import mlflow.artifacts

    mend = "see the experiment cmseg-promotions in MLflow"
    with tempfile.TemporaryDirectory() as folder, reported(run.info.run_id):
        try:
            path = mlflow.artifacts.download_artifacts(
                run_id=run.info.run_id, artifact_path=RECORD, dst_path=folder, tracking_uri=tracking_uri
            )
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return Audit.model_validate({**content, "completed": run.info.status == "FINISHED"})
        except (OSError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise InputError(f"the record {run.info.run_id}", f"cannot be read ({line})", mend) from error


def _formers(client: MlflowClient, name: str) -> list[str]:
    """Versions that were champion before, the last one last, as far as they still exist."""
    kept = json.loads(client.get_registered_model(name).tags.get(FORMER_TAG, "[]"))
    exist = {str(version.version) for version in search(client, f"name = '{name}'")}
    return [version for version in kept if version in exist]


def _set_former(client: MlflowClient, name: str, versions: list[str]) -> None:
    client.set_registered_model_tag(name, FORMER_TAG, json.dumps(versions))
    if versions:
        client.set_registered_model_alias(name, FORMER, versions[-1])
    elif FORMER in client.get_registered_model(name).aliases:
        client.delete_registered_model_alias(name, FORMER)
