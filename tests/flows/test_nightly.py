"""A night with good and bad acquisitions, on a folder and on S3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cmseg_core.errors import InputError, StoreRefusal
from cmseg_core.schema import PipelineConfig, VoxelSize, Workspace
from cmseg_core.storage.store import Store
from flows.status import acquisition_states, damage, storage_use
from flows.submit import submit
from tasks.claims import Owner, claim


def night(workspace: Workspace, config: PipelineConfig, **options: Any) -> Any:
    from flows.nightly import nightly

    return nightly(config=config, workspace=workspace, **options)


def states(store: Store) -> dict[str, str]:
    return {entry["name"]: entry["state"] for entry in acquisition_states(store)}


def blank_stack(folder: Path) -> str:
    path = folder / "blank.tif"
    tifffile.imwrite(path, np.full((12, 32, 32), 7, np.uint8), photometric="minisblack")
    return str(path)


@pytest.mark.parametrize("store", ["folder", "s3"], indirect=True)
def test_bad_acquisition_does_not_sink_the_good_one(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, tmp_path: Path
) -> None:
    truth = {"truth_cells": str(tiny / "cells.tif"), "truth_organelles": str(tiny / "organelles.tif")}
    submit(str(tiny / "stack.tif"), "good", store, **truth)
    submit(blank_stack(tmp_path), "bad", store, voxel_size=VoxelSize(z=50, y=50, x=50))
    store.put("incoming/half/data/stack.tif", b"an upload that has no acquisition.json yet")
    assert states(store) == {"bad": "waiting", "good": "waiting"}

    bad, good = night(local, config)

    assert (bad.state, good.state) == ("quarantined", "published")
    assert good.cells == 3 and set(good.evaluation["organelles"]["per_stage"]) == {"1", "2", "3"}
    reason = json.loads(store.get("quarantine/bad/reason.json"))
    assert set(reason) == {"name", "reason", "mend", "kind"} and reason["kind"] == "input"
    assert str(tmp_path / "workspace") not in reason["reason"]
    manifest = json.loads(store.get("acquisitions/good/manifest.json"))
    assert manifest["acquisition"]["source"].startswith("incoming/good/data-")
    keys = {key.removeprefix("acquisitions/good/") for key in store.list("acquisitions/good")}
    assert keys == {output["path"] for output in manifest["outputs"]} | {"manifest.json"}
    assert states(store) == {"bad": "quarantined", "good": "published"}
    assert not any((local.workspace / "scratch").iterdir())
    shown = {artifact.key or artifact.description: artifact.data for artifact in newest_artifacts()}
    assert shown["night-progress"] == 100
    assert [row["state"] for row in json.loads(shown["night"])] == ["quarantined", "published"]
    assert "`cmseg fetch good`" in shown["report-good"] and "![" in shown["review"]
    assert shown["published, 3 cells"] == 100 and shown["bad"] == 0
    assert {"process-good": {"cmseg", "good"}, "process-bad": {"cmseg", "bad"}}.items() <= tags_of_runs().items()
    assert night(local, config) == []


def test_a_form_of_prefect_gives_plain_values(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig
) -> None:
    from prefect.exceptions import ParameterTypeError

    from flows.nightly import nightly

    submit(str(tiny / "stack.tif"), "good", store)
    form = {
        "config": config.model_dump(mode="json", include={"foreground"}),
        "workspace": local.model_dump(mode="json"),
        "names": ["good"],
    }
    with pytest.raises(ParameterTypeError, match="cell_diameter_px"):
        nightly(**{**form, "config": {"foreground": {"cell_diameter_px": "many"}}})  # type: ignore[arg-type]
    (result,) = nightly(**form)  # type: ignore[arg-type]
    assert result.state == "published"


def newest_artifacts() -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import ArtifactSort

    with get_client(sync_client=True) as client:
        return list(reversed(client.read_artifacts(sort=ArtifactSort.UPDATED_DESC, limit=40)))


def tags_of_runs() -> dict[str, set[str]]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        newest = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=20)
    return {run.name: set(run.tags) for run in reversed(newest)}


def test_what_nobody_could_have_submitted_stops_no_night(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig
) -> None:
    store.put("incoming/run 1/acquisition.json", b"{}")
    submit(str(tiny / "stack.tif"), "good", store)
    assert [result.state for result in night(local, config)] == ["published"]
    assert states(store) == {"good": "published", "run 1": "quarantined"}
    (told,) = [entry for entry in acquisition_states(store) if entry["name"] == "run 1"]
    assert "is no name of an acquisition" in str(told["reason"])
    assert [entry["name"] for entry in acquisition_states(store, "good")] == ["good"]


def test_fault_is_tried_once_more_then_quarantined(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import instances

    calls = []

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        calls.append(1)
        raise ZeroDivisionError("a fault of ours")

    submit(str(tiny / "stack.tif"), "unlucky", store)
    with monkeypatch.context() as patch:
        patch.setattr(instances, "collect", broken)
        (result,) = night(local, config)
    assert len(calls) == 2
    assert result.state == "quarantined" and result.reason == "ZeroDivisionError: a fault of ours"
    assert json.loads(store.get("quarantine/unlucky/reason.json"))["kind"] == "fault"
    # Named, it gets another chance once the fault is mended.
    (result,) = night(local, config, names=["unlucky"])
    assert result.state == "published" and states(store) == {"unlucky": "published"}


def failing(times: int, genuine: Any) -> Any:
    """A function whose service does not answer so many times."""
    left = [times]

    def call(*args: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise ConnectionError("the service does not answer")
        return genuine(*args, **options)

    return call


@pytest.mark.parametrize("place", ["waiting", "claim", "fetch_submission", "state_of"])
def test_a_service_that_fails_for_a_while_holds_the_night_up(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from flows import nightly

    submit(str(tiny / "stack.tif"), "patient", store)
    monkeypatch.setattr(nightly, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(nightly, place, failing(2, getattr(nightly, place)))
    (result,) = night(local, config)
    assert result.state == "published" and states(store) == {"patient": "published"}
    assert store.list("quarantine") == [] and store.list("work/claims") == []


def test_what_a_failing_service_left_waits_for_the_next_night(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flows import nightly

    submit(str(tiny / "stack.tif"), "good", store)
    submit(blank_stack(tmp_path), "blank", store, voxel_size=VoxelSize(z=50, y=50, x=50))
    monkeypatch.setattr(nightly, "PAUSES", (0.0,))
    with monkeypatch.context() as patch:
        patch.setattr(nightly, "process_acquisition", failing(100, None))
        with pytest.raises(nightly.Unfinished, match="blank .the service does not answer.") as caught:
            night(local, config)
    assert {result.name: result.state for result in caught.value.results} == {"blank": "waiting", "good": "waiting"}
    assert states(store) == {"blank": "waiting", "good": "waiting"}
    assert {result.name: result.state for result in night(local, config)} == {
        "blank": "quarantined",
        "good": "published",
    }


def test_a_key_that_stops_to_be_right_quarantines_nothing(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import nightly

    def refused(*_args: Any) -> Path:
        raise StoreRefusal("s3://cmseg/incoming", "access was refused", "check AWS_ACCESS_KEY_ID and its secret")

    submit(str(tiny / "stack.tif"), "good", store)
    monkeypatch.setattr(nightly, "PAUSES", (0.0,))
    with monkeypatch.context() as patch:
        patch.setattr(nightly, "fetch_submission", refused)
        with pytest.raises(nightly.Unfinished, match="access was refused"):
            night(local, config)
    assert states(store) == {"good": "waiting"} and store.list("quarantine") == []


def test_a_model_that_is_not_there_quarantines_nothing(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, tmp_path: Path
) -> None:
    submit(str(tiny / "stack.tif"), "good", store)
    with pytest.raises(InputError, match="nothing.keras"):
        night(local.model_copy(update={"unet": str(tmp_path / "nothing.keras")}), config)
    assert states(store) == {"good": "waiting"} and store.list("quarantine") == []


def test_pictures_that_cannot_be_made_take_nothing_from_a_night(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import morning

    submit(str(tiny / "stack.tif"), "good", store)
    monkeypatch.setattr(morning, "cells_to_review", failing(1, None))
    (result,) = night(local, config)
    assert result.state == "published"


@pytest.mark.parametrize("store", ["folder", "s3"], indirect=True)
def test_a_cell_is_not_quarantined_for_what_its_service_did(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from obstore.exceptions import GenericError

    from cmseg_core.storage.stages import StageOutput
    from flows import nightly

    submit(str(tiny / "stack.tif"), "cells", store)
    genuine, failures = StageOutput.create_array, []

    def create_array(self: StageOutput, name: str, *args: Any, **options: Any) -> Any:
        if self.stage == "organelles" and len(failures) < 6:  # more often than a task tries it
            failures.append(name)
            raise GenericError("the service does not answer")
        return genuine(self, name, *args, **options)

    monkeypatch.setattr(nightly, "PAUSES", (0.0,))
    monkeypatch.setattr(StageOutput, "create_array", create_array)
    (result,) = night(local, config)
    assert len(failures) == 6
    assert result.state == "published" and result.quarantined_cells == {} and result.cells == 3


@pytest.mark.parametrize(("stage", "name"), [("organelles", "labels/c/"), ("measure", "model.glb")])
def test_what_a_step_left_and_a_disk_altered_is_computed_again(
    store: Store,
    local: Workspace,
    tiny: Path,
    config: PipelineConfig,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    name: str,
) -> None:
    from cmseg_core.storage.stages import StageOutput
    from flows import process_acquisition

    genuine, altered, told = StageOutput.commit, [], []

    def commit(self: StageOutput, *args: Any, **options: Any) -> None:
        genuine(self, *args, **options)
        if self.stage == stage and not altered:
            altered.append(flip(self.store, f"{self.prefix}/{name}"))

    def emit(event: str, **options: Any) -> None:
        told.append((event, options["resource"]["prefect.resource.name"]))

    submit(str(tiny / "stack.tif"), "whole", store)
    night(local, config)
    submit(str(tiny / "stack.tif"), "rotten", store)
    store.delete("work")
    monkeypatch.setattr(StageOutput, "commit", commit)
    monkeypatch.setattr(process_acquisition, "emit_event", emit)
    (result,) = night(local, config)
    assert (result.state, result.cells, result.quarantined_cells) == ("published", 3, {})
    assert len(altered) == 1 and told == [("cmseg.acquisition.damaged", "rotten")]
    for file in ("cells.csv", "cells/1/organelles.tif", "cells/2/model.glb"):
        assert store.sha256(f"acquisitions/rotten/{file}") == store.sha256(f"acquisitions/whole/{file}")


def flip(store: Store, prefix: str) -> str:
    """Alter a byte in the middle of the first object whose key begins so."""
    key = next(key for key in store.list(prefix.rpartition("/")[0]) if key.startswith(prefix))
    whole, middle = store.get(key), len(store.get(key)) // 2
    store.put(key, whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    return key


def test_a_disk_that_alters_all_sets_the_acquisition_aside_and_no_cell(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmseg_core.storage.stages import StageOutput

    genuine = StageOutput.commit

    def commit(self: StageOutput, *args: Any, **options: Any) -> None:
        genuine(self, *args, **options)
        if self.stage == "preprocess":
            flip(self.store, f"{self.prefix}/image/c/")

    submit(str(tiny / "stack.tif"), "rotten", store)
    with monkeypatch.context() as patch:
        patch.setattr(StageOutput, "commit", commit)
        (result,) = night(local, config)
    assert result.state == "quarantined" and "was altered since" in str(result.reason)
    store.delete("work")
    (mended,) = night(local, config, names=["rotten"])
    assert (mended.state, mended.cells, mended.quarantined_cells) == ("published", 3, {})


def test_submission_that_leads_astray_is_quarantined_unread(
    local: Workspace, store: Store, tiny: Path, config: PipelineConfig
) -> None:
    honest = submit(str(tiny / "stack.tif"), "honest", store)
    entry = honest.model_dump(mode="json")
    for name, changed in (
        ("escape", {"source": "../../../../../../etc/passwd"}),
        ("altered", {"sha256": "0" * 64}),
        ("misnamed", {"name": "honest"}),
    ):
        store.put(f"incoming/{name}/{honest.source}", (tiny / "stack.tif").read_bytes())
        store.put(f"incoming/{name}/acquisition.json", json.dumps(entry | {"name": name} | changed).encode())
    results = night(local, config, names=["escape", "altered", "misnamed"])
    reasons = {result.name: result.reason for result in results}
    assert all(result.state == "quarantined" for result in results)
    assert "not a valid key" in reasons["escape"]
    assert "differs from what was submitted" in reasons["altered"]
    assert "names another acquisition" in reasons["misnamed"]
    assert states(store)["honest"] == "waiting"


def test_name_that_was_never_submitted_is_refused(local: Workspace, store: Store, config: PipelineConfig) -> None:
    with pytest.raises(InputError, match="never submitted"):
        night(local, config, names=["../nobody"])
    assert store.list() == []


def test_submission_is_refused_before_anything_is_uploaded(store: Store, tiny: Path, tmp_path: Path) -> None:
    stack = str(tiny / "stack.tif")
    for bad in (
        {"source": blank_stack(tmp_path), "name": "no-voxel-size"},
        {"source": stack, "name": "../elsewhere"},
        {"source": stack, "name": "other-truth", "truth_cells": blank_stack(tmp_path)},
    ):
        with pytest.raises(InputError):
            submit(store=store, **bad)
    assert store.list() == []


def test_another_stack_under_a_name_is_its_next_version(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, tmp_path: Path
) -> None:
    size = VoxelSize(z=50, y=50, x=50)
    assert submit(blank_stack(tmp_path), "night", store, voxel_size=size).name == "night"
    assert [result.state for result in night(local, config)] == ["quarantined"]
    before = store.sizes()
    # The same once more changes nothing; a mended one takes its own way, and so does one with truth.
    assert submit(blank_stack(tmp_path), "night", store, voxel_size=size).name == "night"
    assert store.sizes() == before
    assert submit(str(tiny / "stack.tif"), "night", store).name == "night@2"
    assert submit(str(tiny / "stack.tif"), "night", store).name == "night@2"
    scored = submit(str(tiny / "stack.tif"), "night", store, truth_cells=str(tiny / "cells.tif"))
    assert scored.name == "night@3"
    assert {result.name: result.state for result in night(local, config)} == {
        "night@2": "published",
        "night@3": "published",
    }
    assert [(s["name"], s["version"], s["state"]) for s in acquisition_states(store, "night")] == [
        ("night", 1, "quarantined"),
        ("night", 2, "published"),
        ("night", 3, "published"),
    ]
    assert [s["version"] for s in acquisition_states(store, "night@2")] == [2]
    assert before.items() <= store.sizes().items()
    assert json.loads(store.get("acquisitions/night@2/manifest.json"))["acquisition"]["name"] == "night@2"


def test_a_version_is_not_chosen_by_who_submits(store: Store, tiny: Path) -> None:
    with pytest.raises(InputError, match="names a version"):
        submit(str(tiny / "stack.tif"), "night@7", store)
    assert store.list() == []


def test_acquisition_in_work_reads_as_running(store: Store, tiny: Path) -> None:
    submit(str(tiny / "stack.tif"), "night", store)
    mine = claim(store, "night")
    assert mine is not None and states(store) == {"night": "running"}
    with mine.kept():
        assert states(store) == {"night": "running"}
    assert states(store) == {"night": "waiting"}


def test_what_another_worker_has_is_left_to_it(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(str(tiny / "stack.tif"), "taken", store)
    mine = claim(store, "taken")
    assert mine is not None
    assert night(local, config) == []
    assert states(store) == {"taken": "running"}


def test_an_acquisition_that_kills_its_workers_is_set_aside(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig
) -> None:
    submit(str(tiny / "stack.tif"), "deadly", store)
    gone = Owner.this().model_copy(update={"began": 1.0})
    for attempt in (1, 2, 3):
        assert states(store) == {"deadly": "waiting"}
        store.put(f"work/claims/deadly/{attempt:04d}/owner.json", gone.model_dump_json().encode())
    (result,) = night(local, config)
    assert result.state == "quarantined" and "3 workers were killed" in result.reason
    assert json.loads(store.get("quarantine/deadly/reason.json"))["kind"] == "fault"
    (result,) = night(local, config, names=["deadly"])
    assert result.state == "published"


def test_the_claim_of_a_worker_that_died_as_it_had_finished_is_cleared(
    store: Store, local: Workspace, config: PipelineConfig, tmp_path: Path
) -> None:
    submit(blank_stack(tmp_path), "blank", store, voxel_size=VoxelSize(z=50, y=50, x=50))
    assert night(local, config)[0].state == "quarantined"
    gone = Owner.this().model_copy(update={"began": 1.0})
    store.put("work/claims/blank/0001/owner.json", gone.model_dump_json().encode())
    store.put("work/claims/other/0001/owner.json", gone.model_dump_json().encode())
    mine = claim(store, "blank")
    assert mine is not None and mine.attempt == 2
    assert night(local, config) == []
    assert len(store.list("work/claims/blank")) == 2
    with mine.kept():
        pass
    store.put("work/claims/blank/0001/owner.json", gone.model_dump_json().encode())
    assert night(local, config) == []
    assert store.list("work/claims") == ["work/claims/other/0001/owner.json"]


def test_status_of_an_unknown_name_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match="never submitted"):
        acquisition_states(store, "nobody")


@pytest.mark.parametrize("store", ["folder", "s3"], indirect=True)
def test_what_takes_the_room_and_what_was_damaged_is_told(
    store: Store, local: Workspace, tiny: Path, config: PipelineConfig
) -> None:
    submit(str(tiny / "stack.tif"), "whole", store)
    assert night(local, config)[0].state == "published"
    used = {use["folder"]: use for use in storage_use(store)}
    assert used["acquisitions"]["bytes"] == sum(store.sizes("acquisitions").values())
    assert used["work/preprocess"]["expires"] and not used["incoming"]["expires"]
    assert sum(use["objects"] for use in used.values()) == len(store.list())
    assert used["incoming"]["former"] == 0
    assert damage(store, "whole") == []
    (raw,) = [key for key in store.list("incoming/whole") if key.endswith("stack.tif")]
    for key in ("acquisitions/whole/cells.csv", raw):
        content = bytearray(store.get(key))
        content[len(content) // 2] ^= 1
        store.put(key, bytes(content))
    store.put("acquisitions/whole/added.txt", b"")
    assert damage(store, "whole") == [
        f"{raw}: differs from what was submitted",
        "acquisitions/whole/added.txt: not in the manifest",
        "acquisitions/whole/cells.csv: content differs from the manifest",
    ]
