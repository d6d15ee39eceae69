"""Promotion, rollback and their records, on a real registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmseg_core.errors import InputError
from cmseg_core.evaluation.gate import Change, Verdict
from cmseg_core.tracking import promotion
from cmseg_core.tracking.catalogue import RegisteredVersion, describe, find_alias
from cmseg_core.tracking.connection import connect, default_tracking_uri
from cmseg_core.tracking.promotion import Action, Audit, Party, keep, promote, read_audits, rollback
from cmseg_core.tracking.registry import register_file

VERDICT = Verdict(
    passed=True,
    reasons=(),
    cells=7,
    champion_mean=0.5,
    challenger_mean=0.75,
    changes=(
        Change(
            name="dot",
            stage=5,
            cells=7,
            champion=0.5,
            challenger=0.75,
            interval=(0.125, 0.375),
            lent=False,
            falls=False,
        ),
    ),
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the module: making its tables takes over a second. Each test uses a model name of its own."""
    return default_tracking_uri(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def name(uri: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A registered model with three versions and no champion."""
    name = f"m-{request.node.name}"[:60]
    for number in (1, 2, 3):
        path = tmp_path / f"{number}.keras"
        path.write_bytes(b"PK" * number)
        register_file(path, name, "unet", uri, alias="challenger")
    return name


def audit_of(name: str, version: str, uri: str, action: Action = "promoted") -> Audit:
    champion = find_alias(name, "champion", uri)
    return Audit(
        action=action,
        name=name,
        challenger=Party.of(describe(f"models:/{name}/{version}", uri)),
        champion=champion and Party.of(champion),
        dataset="cells@3",
        dataset_digest="ab",
        learnt={"challenger": 2},
        verdict=VERDICT,
    )


def bearer(name: str, alias: str, uri: str) -> str | None:
    found: RegisteredVersion | None = find_alias(name, alias, uri)
    return found and found.version


def test_the_alias_moves_and_rollbacks_lead_back_one_by_one(name: str, uri: str) -> None:
    for version in ("1", "2", "3"):
        promote(audit_of(name, version, uri), uri)
    assert [bearer(name, alias, uri) for alias in ("champion", "former", "challenger")] == ["3", "2", None]
    assert rollback(name, uri).challenger.version == "2"
    assert [bearer(name, alias, uri) for alias in ("champion", "former")] == ["2", "1"]
    rollback(name, uri)
    assert [bearer(name, alias, uri) for alias in ("champion", "former")] == ["1", None]
    with pytest.raises(InputError, match="has no former champion"):
        rollback(name, uri)
    assert bearer(name, "champion", uri) == "1"


def test_after_a_rollback_another_promotion_and_rollback_work(name: str, uri: str) -> None:
    for version in ("1", "2"):
        promote(audit_of(name, version, uri), uri)
    rollback(name, uri)
    promote(audit_of(name, "3", uri), uri)
    promote(audit_of(name, "1", uri), uri)
    assert bearer(name, "champion", uri) == "1"
    seen = [rollback(name, uri).challenger.version for _ in range(2)]
    assert seen == ["3", "1"]


def test_every_decision_is_kept_with_its_figures(name: str, uri: str) -> None:
    promote(audit_of(name, "1", uri), uri)
    refused = audit_of(name, "2", uri, "refused").model_copy(update={"reasons": ("dot in stage 5 falls",)})
    keep(refused, uri)
    promote(audit_of(name, "3", uri), uri)
    rollback(name, uri)
    audits = read_audits(uri, name)
    assert [(a.action, a.challenger.version, a.champion and a.champion.version) for a in audits] == [
        ("promoted", "1", None),
        ("refused", "2", "1"),
        ("promoted", "3", "1"),
        ("rolled back", "1", "3"),
    ]
    assert all(a.completed and a.run_id and a.when and "@" in a.who and a.code for a in audits)
    assert audits[1].model_copy(update={"run_id": ""}) == refused
    assert audits[2].verdict == VERDICT
    assert audits[2].challenger.sha256 == describe(f"models:/{name}/3", uri).tags["sha256"]
    tags = {v: describe(f"models:/{name}/{v}", uri).tags for v in "123"}
    assert {v: t["decision"] for v, t in tags.items()} == {"1": "promoted", "2": "refused", "3": "rolled back"}
    assert tags["2"]["decision_run"] == audits[1].run_id
    assert {a.run_id for a in audits} <= {a.run_id for a in read_audits(uri)}
    run = connect(uri).get_run(audits[2].run_id)
    assert run.data.metrics == {"champion_mean_iou": 0.5, "challenger_mean_iou": 0.75}


def test_a_refusal_moves_nothing(name: str, uri: str) -> None:
    promote(audit_of(name, "1", uri), uri)
    keep(audit_of(name, "3", uri, "refused"), uri)
    assert [bearer(name, alias, uri) for alias in ("champion", "challenger", "former")] == ["1", "3", None]


def test_a_champion_that_came_meanwhile_is_not_pushed_aside(name: str, uri: str) -> None:
    promote(audit_of(name, "1", uri), uri)
    late = audit_of(name, "2", uri)
    promote(audit_of(name, "3", uri), uri)
    with pytest.raises(InputError, match="got another champion"):
        promote(late, uri)
    assert bearer(name, "champion", uri) == "3"
    assert len(read_audits(uri, name)) == 2


def test_a_promotion_that_broke_off_shows_in_the_audit_and_is_done_anew(
    name: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(audit_of(name, "1", uri), uri)
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "_set_former", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            promote(audit_of(name, "2", uri), uri)
    assert bearer(name, "champion", uri) == "1"
    promote(audit_of(name, "2", uri), uri)
    assert [a.completed for a in read_audits(uri, name)] == [True, False, True]
    rollback(name, uri)
    assert bearer(name, "champion", uri) == "1"


def test_a_former_champion_that_was_deleted_is_passed_over(name: str, uri: str) -> None:
    for version in ("1", "2", "3"):
        promote(audit_of(name, version, uri), uri)
    connect(uri).delete_model_version(name, "2")
    assert rollback(name, uri).challenger.version == "1"


def test_what_is_not_there_is_bad_input(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="m-nobody"):
        rollback("m-nobody", uri)
    assert read_audits(default_tracking_uri(tmp_path)) == []
