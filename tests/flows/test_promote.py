"""Promotion as a flow: who meets whom, who is asked, and what the next night works with."""

from __future__ import annotations

import contextvars
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmseg_core.errors import InputError
from cmseg_core.phantom import draw_field, write_acquisition
from cmseg_core.schema import C_MEROLAE, PipelineConfig, Taxonomy, VoxelSize, Workspace
from cmseg_core.tracking.catalogue import find_alias, list_versions
from cmseg_core.tracking.promotion import Audit, Party, promote, read_audits
from cmseg_core.tracking.registry import register_file
from flows.submit import submit


@pytest.fixture
def local(prefect_home: Path, tmp_path: Path) -> Workspace:
    return Workspace(workspace=tmp_path / "workspace", mlflow_tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def uri(local: Workspace) -> str:
    assert local.mlflow_tracking_uri is not None
    return local.mlflow_tracking_uri


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Networks that never learnt anything: each seed says something else."""
    from cmseg_core.organelles.model import OrganelleModel, save_model
    from cmseg_core.organelles.network import build_unet

    folder = tmp_path_factory.mktemp("networks")

    def network(seed: int, taxonomy: Taxonomy = C_MEROLAE) -> Path:
        built = build_unet(len(taxonomy), 32, width=4, depth=2, seed=seed)
        metadata = {"cells": ["tiny/1", "elsewhere/1"]}
        return save_model(OrganelleModel(built, taxonomy, 32, metadata=metadata), folder / f"{seed}.keras")

    return network


def run(challenger: str, dataset: Path, workspace: Workspace, **options: Any) -> Audit:
    from flows.promote import promote as flow

    return flow(challenger, str(dataset), workspace=workspace, **{"config": PipelineConfig(), **options})


def answered(given: dict[str, Any]) -> threading.Thread:
    """Resume the run that waits, as a person would in the Prefect UI."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import StateType

    paused = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.PAUSED]}}})

    def answer() -> None:
        with get_client(sync_client=True) as client:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                for waiting in client.read_flow_runs(flow_run_filter=paused):
                    if client.resume_flow_run(waiting.id, run_input=given).status.value == "ACCEPT":
                        return
                time.sleep(0.5)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(answer,))
    thread.start()
    return thread


def champion(name: str, uri: str) -> str | None:
    found = find_alias(name, "champion", uri)
    return found and found.version


def test_of_two_the_better_one_is_champion_and_stays_it(
    local: Workspace, uri: str, tiny: Path, networks: Callable[..., Path]
) -> None:
    for seed in (1, 2):
        register_file(networks(seed), "mine", "unet", uri)
    first = run("models:/mine/1", tiny, local)
    assert (first.action, first.champion, first.verdict) == ("promoted", None, None)
    assert first.learnt == {"challenger": 1}
    second = run("models:/mine/2", tiny, local)
    assert second.verdict is not None and second.champion is not None
    assert second.verdict.cells == 3
    assert second.dataset_digest == first.dataset_digest
    if second.action == "promoted":  # then the first one is the worse of the two
        third = run("models:/mine/1", tiny, local)
        assert (third.action, champion("mine", uri)) == ("refused", "2")
        refused = third
    else:
        assert champion("mine", uri) == "1"
        refused = second
    assert refused.verdict is not None
    assert any(name in refused.reasons[0] for name in C_MEROLAE.names)
    assert "stage" in " ".join(refused.reasons)
    assert read_audits(uri, "mine")[-1] == refused
    with pytest.raises(InputError, match="in use already"):
        run("models:/mine@champion", tiny, local)


@pytest.mark.parametrize("yes", [True, False])
def test_a_challenger_that_passed_waits_for_a_persons_answer(
    local: Workspace, uri: str, tiny: Path, networks: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, yes: bool
) -> None:
    from flows import promote as module

    monkeypatch.setattr(module, "ASK_SECONDS", 1)
    register_file(networks(1), "asked", "unet", uri)
    thread = answered({"promote": yes, "name": "Ada", "comment": "plastids look odd"})
    audit = run("models:/asked/1", tiny, local, approval=True)
    thread.join()
    assert audit.action == ("promoted" if yes else "declined")
    assert audit.approval == {"promote": yes, "name": "Ada", "comment": "plastids look odd"}
    assert yes or audit.reasons == ("Ada said no: plastids look odd",)
    assert champion("asked", uri) == ("1" if yes else None)
    assert read_audits(uri, "asked") == [audit]


def test_without_an_answer_nothing_moves(
    local: Workspace, uri: str, tiny: Path, networks: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import promote as module

    monkeypatch.setattr(module, "ASK_SECONDS", 1)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 2)
    register_file(networks(1), "waiting", "unet", uri)
    late = run("models:/waiting/1", tiny, local, approval=True)
    assert late.action == "declined"
    assert "nobody answered" in late.reasons[0]
    assert champion("waiting", uri) is None


def test_without_a_champion_the_packaged_model_is_the_rival(
    local: Workspace,
    uri: str,
    tiny: Path,
    networks: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from cmseg_core.tracking import registry

    packaged = networks(1)
    monkeypatch.setattr(registry, "files", lambda _: packaged.parent)
    monkeypatch.setitem(registry.PACKAGED, "unet", packaged.name)
    register_file(networks(2), "cmseg-unet", "unet", uri, alias="challenger")
    audit = run("challenger", tiny, local)
    assert audit.verdict is not None
    assert audit.champion is not None and audit.champion.version == "2"
    assert champion("cmseg-unet", uri) == ("1" if audit.action == "promoted" else "2")


def test_what_cannot_be_compared_is_refused_unchanged(
    local: Workspace, uri: str, tiny: Path, networks: Callable[..., Path]
) -> None:
    other = Taxonomy(classes=C_MEROLAE.classes[:3])
    register_file(networks(1), "theirs", "unet", uri)
    register_file(networks(3, other), "theirs", "unet", uri, alias="champion")
    with pytest.raises(InputError, match="knows the classes background, cytoplasm, plastid;"):
        run("models:/theirs/2", tiny, local)
    with pytest.raises(InputError, match="knows other classes than the champion models:/theirs/2"):
        run("models:/theirs/1", tiny, local)
    with pytest.raises(InputError, match="is not in the registry"):
        run(str(networks(1)), tiny, local)
    with pytest.raises(InputError, match="models:/nobody/1"):
        run("models:/nobody/1", tiny, local)
    assert read_audits(uri) == []
    assert champion("theirs", uri) == "2"


@pytest.fixture(scope="module")
def two_fields(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two simulated acquisitions."""
    folder = tmp_path_factory.mktemp("two-fields")
    (folder / "first").symlink_to(tiny)
    write_acquisition(draw_field(4, cells=2, voxel_size=VoxelSize(z=60, y=50, x=50)), folder / "second")
    return folder


def test_a_sam_that_finds_no_cells_is_refused(local: Workspace, uri: str, two_fields: Path, tmp_path: Path) -> None:
    import torch

    from cmseg_core.foreground.sam import SamArchitecture, load_sam, save_sam
    from cmseg_core.tracking.registry import packaged_model

    path = packaged_model("sam")
    network, content = load_sam(path).network, torch.load(path, weights_only=True)
    for parameter in network.mask_decoder.iou_prediction_head.layers[-1].parameters():
        parameter.zero_()  # no mask that it makes is any good, it says
    size = SamArchitecture.model_validate(content["architecture"])
    saved = save_sam(network, size, tmp_path / "w.pt", {"names": ["second", "third"]})
    register_file(saved, "cmseg-sam", "sam", uri)
    quick = PipelineConfig.model_validate({"foreground": {"directions": 1, "points_per_side": 6}})
    audit = run("models:/cmseg-sam/1", two_fields, local, config=quick)
    assert (audit.action, audit.learnt) == ("refused", {"challenger": 1, "champion": 0})
    assert audit.verdict is not None and audit.verdict.cells == 2
    assert audit.verdict.champion_mean > 0.8, "the packaged model finds these cells"
    assert audit.reasons[0].startswith("cells at IoU .50 over all fields falls from 1.000 to 0.000")
    assert set(audit.settings) == {"preprocess", "foreground", "instances"}
    assert champion("cmseg-sam", uri) == "2", "the packaged model is now a registered one"
    with pytest.raises(InputError, match="are too few to compare models: 1 field"):
        run("models:/cmseg-sam/1", two_fields / "second", local)


def test_a_classifier_that_mistakes_the_stages_is_refused(
    local: Workspace, uri: str, two_fields: Path, tmp_path: Path
) -> None:
    from cmseg_core.morphology.stage_classifier import load_classifier, save_classifier
    from cmseg_core.tracking.registry import packaged_model

    good = load_classifier(packaged_model("stage"))
    turned = good.model_copy(update={"weights": good.weights[::-1], "offset": good.offset[::-1]})
    register_file(save_classifier(turned, tmp_path / "turned.json"), "cmseg-stage", "stage", uri)
    audit = run("models:/cmseg-stage/1", two_fields, local)
    assert audit.action == "refused"
    assert audit.verdict is not None and audit.verdict.cells == 5
    assert audit.verdict.champion_mean > 0.5 > audit.verdict.challenger_mean
    assert " over all cells: from 1.000 to 0.000" in audit.reasons[-1], "the stage is named"


def test_the_next_night_takes_the_new_champion_and_says_so(
    local: Workspace, uri: str, tiny: Path, config: PipelineConfig, networks: Callable[..., Path]
) -> None:
    from flows.nightly import nightly
    from flows.places import store_address

    store = store_address(local).open()
    assert local.unet == "champion"

    def night(name: str) -> dict[str, str]:
        submit(str(tiny / "stack.tif"), name, store)
        (result,) = nightly(config=config, workspace=local)
        assert result.state == "published"
        return json.loads(store.get(f"acquisitions/{name}/manifest.json"))["models"]["unet"]

    for seed, alias in ((1, "champion"), (2, "challenger")):
        register_file(networks(seed), "cmseg-unet", "unet", uri, alias=alias)
    versions = {version.version: version for version in list_versions(uri)}
    before = night("monday")
    promote(
        Audit(
            action="promoted",
            name="cmseg-unet",
            challenger=Party.of(versions["2"]),
            champion=Party.of(versions["1"]),
        ),
        uri,
    )
    after = night("tuesday")
    assert [made["version"] for made in (before, after)] == ["1", "2"]
    assert [made["sha256"] for made in (before, after)] == [versions[v].tags["sha256"] for v in ("1", "2")]
    assert after["reference"] == "models:/cmseg-unet/2"


def test_a_promotion_during_a_night_is_for_the_next_one(
    local: Workspace,
    uri: str,
    tiny: Path,
    config: PipelineConfig,
    networks: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows import nightly
    from flows.places import store_address

    store, genuine = store_address(local).open(), nightly.process_acquisition

    def process(request: Any) -> Any:
        made = genuine(request)
        register_file(networks(2), "cmseg-unet", "unet", uri, alias="champion")
        return made

    register_file(networks(1), "cmseg-unet", "unet", uri, alias="champion")
    for name in ("first", "second"):
        submit(str(tiny / "stack.tif"), name, store)
    monkeypatch.setattr(nightly, "process_acquisition", process)
    nightly.nightly(config=config, workspace=local)
    made = [
        json.loads(store.get(f"acquisitions/{name}/manifest.json"))["models"]["unet"] for name in ("first", "second")
    ]
    assert [one["version"] for one in made] == ["1", "1"]
    assert len(list_versions(uri)) > 1
