"""Model files: what comes back, and what is refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.organelles.fusion import weights_of
from cmseg_core.organelles.model import MEMBER, OrganelleModel, load_model, save_model
from cmseg_core.organelles.network import build_unet
from cmseg_core.schema import C_MEROLAE, OrganelleClass, Taxonomy
from cmseg_core.tracking.registry import packaged_model

ARCHITECTURE = {"classes": 6, "section_size": None, "width": 4, "depth": 2, "attention": True, "channels_in": 1}


class Explosive:
    """A pickle that leaves a mark where it is executed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def model() -> OrganelleModel:
    metadata = {"architecture": ARCHITECTURE, "cells": ["a/1", "a/2"], "best": {"mean_iou": 0.5, "iou": {"x": None}}}
    weights = np.random.default_rng(0).dirichlet((1, 1, 1), 6).T
    return OrganelleModel(build_unet(**ARCHITECTURE), C_MEROLAE, 32, 1.25, metadata, weights)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((2, 32, 32, 1), dtype=np.float32)


@pytest.fixture
def saved(model, tmp_path: Path) -> Path:
    return save_model(model, tmp_path / "model.keras")


def rewrite(path: Path, changes: dict[str, bytes | None]) -> None:
    """Replace members of an archive; None removes them."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, **changes}.items():
            if data is not None:
                archive.writestr(name, data)


def test_a_model_comes_back_as_it_was(model, saved, images) -> None:
    again = load_model(saved)
    np.testing.assert_array_equal(again.network.predict_on_batch(images), model.network.predict_on_batch(images))
    assert (again.taxonomy, again.section_size, again.temperature) == (C_MEROLAE, 32, 1.25)
    assert again.metadata == model.metadata and again.channels == 1
    np.testing.assert_array_equal(again.fusion, model.fusion)
    assert [p.name for p in saved.parent.iterdir()] == ["model.keras"]


def test_half_the_bits_give_nearly_the_same_probabilities(model, saved, tmp_path: Path, images) -> None:
    half = save_model(model, tmp_path / "half.keras", half=True)
    assert half.stat().st_size < saved.stat().st_size
    found = load_model(half).network.predict_on_batch(images)
    np.testing.assert_allclose(found, model.network.predict_on_batch(images), atol=5e-3)


def test_another_precision_changes_little(model, saved, images) -> None:
    again = load_model(saved, policy="mixed_bfloat16")
    assert again.network.get_layer("bottom_a_conv").compute_dtype == "bfloat16"
    np.testing.assert_array_equal(again.fusion, model.fusion)
    found, expected = again.network.predict_on_batch(images), model.network.predict_on_batch(images)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_another_precision_needs_the_architecture(model, tmp_path: Path) -> None:
    silent = OrganelleModel(model.network, C_MEROLAE, 32)
    path = save_model(silent, tmp_path / "silent.keras")
    with pytest.raises(InputError, match="architecture"):
        load_model(path, policy="mixed_bfloat16")


def test_a_model_ends_in_keras(model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keras"):
        save_model(model, tmp_path / "model.h5")


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path / "absent.keras")


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "model.keras"
    path.write_bytes(pickle.dumps(Explosive(mark)))
    with pytest.raises(InputError, match="not a .keras archive"):
        load_model(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the file would have left its mark"


def test_another_archive_and_a_keras_file_of_others_are_refused(model, tmp_path: Path) -> None:
    other = tmp_path / "other.keras"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    foreign = tmp_path / "foreign.keras"
    model.network.save(foreign)
    for path in (other, foreign):
        with pytest.raises(InputError, match=MEMBER):
            load_model(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(saved, share) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError):
        load_model(saved)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_a_damaged_or_missing_member_is_refused(saved, name) -> None:
    for data in (b"\x00damaged", None):
        rewrite(saved, {name: data})
        with pytest.raises(InputError, match="Keras model"):
            load_model(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"taxonomy": {"classes": []}},
        {"section_size": "wide"},
        {"temperature": None},
        {"metadata": 3},
        {"fusion": [0.5, 0.5]},
        {"fusion": {"background": {"z": 1, "y": 0, "x": 0}}},
        {"fusion": {name: {"z": 1.5, "y": -0.5, "x": 0} for name in C_MEROLAE.names}},
        {"fusion": {name: {"z": 1, "y": 1, "x": 1} for name in C_MEROLAE.names}},
    ],
)
def test_damaged_metadata_are_refused(saved, change) -> None:
    with zipfile.ZipFile(saved) as archive:
        content = json.loads(archive.read(MEMBER))
    rewrite(saved, {MEMBER: json.dumps({**content, **change}).encode()})
    with pytest.raises(InputError):
        load_model(saved)


def test_a_file_without_weights_lets_all_directions_count_alike(saved) -> None:
    with zipfile.ZipFile(saved) as archive:
        content = json.loads(archive.read(MEMBER))
    assert content["fusion"]["plastid"].keys() == {"z", "y", "x"}
    del content["fusion"]
    rewrite(saved, {MEMBER: json.dumps(content).encode()})
    again = load_model(saved)
    assert again.fusion is None
    np.testing.assert_allclose(weights_of("model", again.fusion, range(3), 6), 1 / 3)
    assert load_model(packaged_model("unet")).section_size == 96


def test_metadata_that_are_no_json_are_refused(saved) -> None:
    rewrite(saved, {MEMBER: b"{"})
    with pytest.raises(InputError, match="damaged metadata"):
        load_model(saved)


def test_a_taxonomy_of_another_size_is_refused(model, tmp_path: Path) -> None:
    two = Taxonomy(classes=(OrganelleClass(id=0, name="outside"), OrganelleClass(id=1, name="cell")))
    path = save_model(OrganelleModel(model.network, two, 32), tmp_path / "two.keras")
    with pytest.raises(InputError, match="6 output channels for 2 classes"):
        load_model(path)


def test_code_in_a_model_is_not_executed(tmp_path: Path) -> None:
    """A Lambda layer carries Python code; safe mode refuses it."""
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Lambda(lambda x: keras.ops.repeat(x, 6, axis=-1), output_shape=(8, 8, 6))(inputs)
    path = save_model(OrganelleModel(keras.Model(inputs, outputs), C_MEROLAE, 8), tmp_path / "code.keras")
    with pytest.raises(InputError, match="Keras model"):
        load_model(path)
