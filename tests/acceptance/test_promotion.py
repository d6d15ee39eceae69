"""``cmseg models promote | rollback | audit | export``: who becomes champion, and what is written down about it."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import drawn

Cmseg = Any
CLASSES = ("cytoplasm", "plastid", "mitochondrion", "peroxisome", "nucleus")


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """A workspace of the test's own."""
    return {"CMSEG_WORKSPACE": str(tmp_path / "workspace")}


@pytest.fixture(scope="module")
def fields(cmseg: Cmseg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What models meet on: coarse, for each of them labels it several times."""
    return drawn(cmseg, tmp_path_factory.mktemp("phantoms") / "coarse", edge_nm=90)


def imported(cmseg: Cmseg, place: dict[str, str], file: Path, name: str, *options: object) -> str:
    made = cmseg("models", "import", file, "--role", "unet", "--name", name, *options, "--json", **place)
    assert made.status == 0, made.err
    return made.document()["model"]


def champion(cmseg: Cmseg, place: dict[str, str], name: str) -> str:
    known = cmseg("models", "list", "--json", **place).document()["models"]
    (found,) = (
        m["reference"] for m in known if "champion" in m["aliases"] and m["reference"].startswith(f"models:/{name}/")
    )
    return found


@pytest.mark.timeout(900)  # nine commands, three of which score two models
def test_a_worse_model_is_refused_a_better_one_promoted_and_rollback_restores(
    cmseg: Cmseg, packaged_models: None, unet: Path, fields: Path, place: dict[str, str], tmp_path: Path
) -> None:
    good = tmp_path / "good.keras"
    exported = cmseg("models", "export", "packaged", good, "--json", **place)
    assert exported.status == 0, exported.err
    assert exported.document()["sha256"] == hashlib.sha256(good.read_bytes()).hexdigest()
    poor_model = imported(cmseg, place, unet, "mine")
    good_model = imported(cmseg, place, good, "mine", "--alias", "challenger")

    first = cmseg("models", "promote", poor_model, fields, "--json", **place)
    assert (first.status, first.document()["champion"]) == (0, None), first.err
    better = cmseg("models", "promote", "models:/mine@challenger", fields, "--json", **place)
    assert better.status == 0, better.err
    document = better.document()
    assert (document["action"], document["challenger"]["reference"]) == ("promoted", good_model)
    assert document["verdict"]["challenger_mean"] > document["verdict"]["champion_mean"]
    assert champion(cmseg, place, "mine") == good_model

    worse = cmseg("models", "promote", poor_model, fields, **place)
    assert worse.status == 3, worse.err
    assert worse.out.startswith(f"refused: {poor_model}; {good_model} stays champion")
    reasons = [line for line in worse.out.splitlines() if " falls from " in line]
    assert any(name in line and "in stage " in line for line in reasons for name in CLASSES), worse.out
    assert champion(cmseg, place, "mine") == good_model

    back = cmseg("models", "rollback", "mine", **place)
    assert (back.status, champion(cmseg, place, "mine")) == (0, poor_model), back.err
    nowhere = cmseg("models", "rollback", "mine", **place)
    assert nowhere.status == 2
    assert "no former champion" in nowhere.complaint()

    decisions = cmseg("models", "audit", "mine", "--json", **place).document()["decisions"]
    assert [(d["action"], d["challenger"]["reference"]) for d in decisions] == [
        ("promoted", poor_model),
        ("promoted", good_model),
        ("refused", poor_model),
        ("rolled back", poor_model),
    ]
    assert decisions[1] == document
    refused = decisions[2]
    assert refused["reasons"] and refused["verdict"]["changes"] and refused["dataset"] == str(fields)
    assert refused["dataset_digest"] == document["dataset_digest"]
    assert {refused[side]["sha256"] for side in ("champion", "challenger")} == {
        hashlib.sha256(file.read_bytes()).hexdigest() for file in (good, unet)
    }
    table = cmseg("models", "audit", **place).out
    assert all(word in table for word in ("promoted", "refused", "rolled back", "mean before"))


@pytest.mark.slow
def test_a_training_meets_the_packaged_model(
    cmseg: Cmseg, packaged_models: None, phantom: Path, place: dict[str, str], tmp_path: Path
) -> None:
    settings = tmp_path / "tiny.yaml"
    settings.write_text("{width: 4, depth: 3, section_size: 32, epochs: 1, steps_per_epoch: 2, precision: float32}\n")
    assert cmseg("train", phantom, "--config", settings, **place).status == 0
    refused = cmseg("models", "promote", "challenger", phantom, "--json", **place)
    assert refused.status == 3, refused.err
    document = refused.document()
    assert (document["action"], document["learnt"]["challenger"]) == ("refused", 3)
    assert champion(cmseg, place, "cmseg-unet") == document["champion"]["reference"]


def test_what_cannot_be_promoted_gets_one_line(
    cmseg: Cmseg, alone: Cmseg, unet: Path, phantom: Path, place: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "pickle.keras").write_bytes(pickle.dumps({"weights": [1]}))
    (tmp_path / "cut.keras").write_bytes(unet.read_bytes()[:2000])
    for file in ("pickle.keras", "cut.keras"):
        bad = cmseg("models", "import", tmp_path / file, "--role", "unet", **place)
        assert (bad.status, file in bad.complaint()) == (2, True)
    smuggled = cmseg("models", "import", unet, "--role", "unet", "--alias", "champion", **place)
    assert (smuggled.status, "passed the gate" in smuggled.complaint()) == (2, True)
    file = cmseg("models", "promote", unet, phantom, **place)
    assert (file.status, "not in the registry" in file.complaint()) == (2, True)
    absent = cmseg("models", "promote", "challenger", phantom, **place)
    assert (absent.status, "cmseg-unet@challenger" in absent.complaint()) == (2, True)
    reference = imported(cmseg, place, unet, "mine")
    nobody = alone("models", "promote", reference, phantom, "--approval", **place)
    assert (nobody.status, "--approval" in nobody.complaint()) == (2, True)
    assert cmseg("models", "audit", "--json", **place).document() == {"decisions": []}
    taken = cmseg("models", "export", reference, unet, **place)
    assert (taken.status, "exists" in taken.complaint()) == (2, True)
    misnamed = cmseg("models", "export", reference, tmp_path / "model.pt", **place)
    assert (misnamed.status, "model.pt" in misnamed.complaint()) == (2, True)
