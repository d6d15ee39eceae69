"""Model references resolve to the very file that was registered, or to one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmseg_core.errors import InputError
from cmseg_core.storage.manifest import file_sha256
from cmseg_core.tracking import registry
from cmseg_core.tracking.catalogue import describe, list_versions, set_alias
from cmseg_core.tracking.connection import connect, default_tracking_uri, experiment_id
from cmseg_core.tracking.registry import ensure_champions, register_file, resolve_model


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the module: making its tables takes over a second. Each test uses a model name of its own."""
    return default_tracking_uri(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "some model.keras"
    path.write_bytes(b"PK network and member of ours")
    return path


@pytest.fixture
def starters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files in place of the packaged models."""
    for name in registry.PACKAGED.values():
        (tmp_path / "package" / name).parent.mkdir(parents=True)
        (tmp_path / "package" / name).write_bytes(name.encode())
    monkeypatch.setattr(registry, "files", lambda package: tmp_path / package.replace("cmseg_core", "package"))
    return tmp_path / "package"


def logged_model(uri: str, reference: str) -> str:
    """Id of the logged model behind a version."""
    (outcome,) = connect(uri).get_run(describe(reference, uri).run_id).outputs.model_outputs
    return outcome.model_id


def test_a_registered_file_comes_back_byte_for_byte(uri: str, model: Path, tmp_path: Path) -> None:
    version = register_file(
        model,
        "m-roundtrip",
        "unet",
        uri,
        alias="challenger",
        tags={"fold": "1"},
        metrics={"iou": 0.5},
        params={"seed": 3},
    )
    assert version == "1"
    for reference in ("models:/m-roundtrip/1", "models:/m-roundtrip@challenger"):
        found = resolve_model(reference, "unet", uri, tmp_path / "cache")
        assert found.path.read_bytes() == model.read_bytes()
        assert found.path.is_relative_to(tmp_path / "cache" / "m-roundtrip")
        assert (found.reference, found.version, found.sha256) == (reference, "1", file_sha256(model))
    about = describe("models:/m-roundtrip@challenger", uri)
    assert about.aliases == ("challenger",)
    assert about.tags == {"fold": "1", "role": "unet", "sha256": file_sha256(model), "file": model.name}


def test_a_version_that_lies_with_its_run_is_still_found(uri: str, model: Path, tmp_path: Path) -> None:
    """As cmseg 0.1.0 registered models before it logged them with a signature."""
    client = connect(uri)
    run = client.create_run(experiment_id(client, uri, "cmseg-unet")).info
    client.log_artifact(run.run_id, str(model), "data")
    client.create_registered_model("m-former")
    tags = {"role": "unet", "sha256": file_sha256(model)}
    client.create_model_version("m-former", f"{run.artifact_uri}/data", run.run_id, tags)
    found = resolve_model("models:/m-former/1", "unet", uri, tmp_path / "cache")
    assert found.path.read_bytes() == model.read_bytes()


def test_a_fetched_model_needs_no_second_download(
    uri: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_file(model, "m-cache", "unet", uri)
    first = resolve_model("models:/m-cache/1", "unet", uri, tmp_path / "cache")
    monkeypatch.setattr(registry, "_download", None)
    assert resolve_model("models:/m-cache/1", "unet", uri, tmp_path / "cache") == first


def test_a_damaged_cache_is_noticed_and_dropped(uri: str, model: Path, tmp_path: Path) -> None:
    register_file(model, "m-damage", "unet", uri)
    path = resolve_model("models:/m-damage/1", "unet", uri, tmp_path / "cache").path
    path.write_bytes(b"another network")
    with pytest.raises(InputError, match="differs from what was registered"):
        resolve_model("models:/m-damage/1", "unet", uri, tmp_path / "cache")
    assert resolve_model("models:/m-damage/1", "unet", uri, tmp_path / "cache").path.read_bytes() == model.read_bytes()


def test_two_registries_share_a_cache_without_mixing(uri: str, model: Path, tmp_path: Path) -> None:
    other = default_tracking_uri(tmp_path / "other")
    register_file(model, "m-two", "unet", uri)
    model.write_bytes(b"PK of the other laboratory")
    register_file(model, "m-two", "unet", other)
    contents = {resolve_model("models:/m-two/1", "unet", u, tmp_path / "cache").path.read_bytes() for u in (uri, other)}
    assert contents == {b"PK network and member of ours", b"PK of the other laboratory"}


def test_an_alias_moves(uri: str, model: Path, tmp_path: Path) -> None:
    for _ in range(2):
        register_file(model, "m-alias", "unet", uri)
    set_alias("m-alias", "champion", "1", uri)
    set_alias("m-alias", "champion", "2", uri)
    assert resolve_model("models:/m-alias@champion", "unet", uri, tmp_path / "cache").version == "2"
    aliases = {v.version: v.aliases for v in list_versions(uri) if v.name == "m-alias"}
    assert aliases == {"1": (), "2": ("champion",)}
    with pytest.raises(InputError):
        set_alias("m-alias", "champion", "9", uri)


@pytest.mark.parametrize(
    "reference",
    [
        "models:/m-absent/1",
        "models:/m-absent@champion",
        "models:/m-known/9",
        "models:/m-known@absent",
        "models:/m-known",
        "models:/m-known/0",
        "models:/../x/1",
        "models:/",
        "/no/such/file.keras",
        "",
    ],
)
def test_what_is_not_there_is_bad_input(uri: str, model: Path, tmp_path: Path, reference: str) -> None:
    if not any(v.name == "m-known" for v in list_versions(uri)):
        register_file(model, "m-known", "unet", uri)
    with pytest.raises(InputError) as caught:
        resolve_model(reference, "unet", uri, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_file_is_a_model_of_its_role_only(uri: str, model: Path, tmp_path: Path) -> None:
    found = resolve_model(str(model), "unet", uri, tmp_path)
    assert (found.version, found.path, found.sha256) == ("file", model, file_sha256(model))
    with pytest.raises(InputError, match="not a model for sam"):
        resolve_model(str(model), "sam", uri, tmp_path)
    with pytest.raises(InputError, match="not a model for sam"):
        register_file(model, "m-role", "sam", uri)
    register_file(model, "m-role", "unet", uri)
    with pytest.raises(InputError, match="is a model for unet, not for sam"):
        resolve_model("models:/m-role/1", "sam", uri, tmp_path)


def test_a_file_needs_no_registry(model: Path, tmp_path: Path) -> None:
    resolve_model(str(model), "unet", "sqlite:////proc/nowhere/mlflow.db", tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        resolve_model("models:/a/1", "unet", "sqlite:////proc/nowhere/mlflow.db", tmp_path)


def test_a_version_with_two_model_files_is_refused(uri: str, model: Path, tmp_path: Path) -> None:
    register_file(model, "m-several", "unet", uri)
    second = model.with_name("second.keras")
    second.write_bytes(b"PK")
    connect(uri).log_model_artifact(logged_model(uri, "models:/m-several/1"), str(second))
    with pytest.raises(InputError, match="holds 2 files"):
        resolve_model("models:/m-several/1", "unet", uri, tmp_path)


def test_the_starters_become_champions_once(uri: str, starters: Path, tmp_path: Path) -> None:
    champions = ensure_champions(uri)
    assert champions == {role: f"models:/cmseg-{role}@champion" for role in ("unet", "sam", "stage")}
    assert ensure_champions(uri) == champions
    assert [(v.name, v.version, v.aliases) for v in list_versions(uri) if v.name.startswith("cmseg-")] == [
        ("cmseg-sam", "1", ("champion",)),
        ("cmseg-stage", "1", ("champion",)),
        ("cmseg-unet", "1", ("champion",)),
    ]
    for role, reference in champions.items():
        packaged = resolve_model("packaged", role, uri, tmp_path)
        assert resolve_model(reference, role, uri, tmp_path).sha256 == packaged.sha256
        assert packaged.path == starters / registry.PACKAGED[role]


def test_a_promoted_champion_stays(starters: Path, model: Path, tmp_path: Path) -> None:
    uri = default_tracking_uri(tmp_path / "fresh")
    register_file(model, "cmseg-unet", "unet", uri, alias="champion")
    ensure_champions(uri)
    assert describe("models:/cmseg-unet@champion", uri).version == "1"
    assert [v.version for v in list_versions(uri) if v.name == "cmseg-unet"] == ["1"]


def test_the_champion_is_the_packaged_model_until_there_is_one(starters: Path, model: Path, tmp_path: Path) -> None:
    uri, cache = default_tracking_uri(tmp_path / "fresh"), tmp_path / "cache"
    assert resolve_model("champion", "unet", uri, cache).reference == "packaged"
    assert not (tmp_path / "fresh").exists()  # nothing is asked, and nothing made
    register_file(model, "cmseg-unet", "unet", uri, alias="challenger")
    assert resolve_model("champion", "unet", uri, cache).reference == "packaged"
    assert resolve_model("challenger", "unet", uri, cache).reference == "models:/cmseg-unet@challenger"
    set_alias("cmseg-unet", "champion", "1", uri)
    found = resolve_model("champion", "unet", uri, cache)
    assert (found.reference, found.version) == ("models:/cmseg-unet@champion", "1")
    assert resolve_model("champion", "sam", uri, cache).reference == "packaged"


def test_an_absent_starter_is_bad_input(starters: Path, uri: str, tmp_path: Path) -> None:
    (starters / registry.PACKAGED["sam"]).unlink()
    with pytest.raises(InputError, match="packaged model is absent"):
        resolve_model("packaged", "sam", uri, tmp_path)
