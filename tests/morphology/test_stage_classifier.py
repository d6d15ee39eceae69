"""The stage classifier: what it learns, how it says so, and its file."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.morphology.stage_classifier import StageClassifier, load_classifier, save_classifier
from cmseg_core.morphology.stage_features import FEATURES, stage_features
from cmseg_core.morphology.stage_training import StageTrainingConfig, fit, train_classifier
from cmseg_core.schema import C_MEROLAE, OrganelleClass, Taxonomy
from tests.morphology.staged import staged_cells

CONFIG = StageTrainingConfig()


@pytest.fixture(scope="module")
def classifier() -> StageClassifier:
    return train_classifier(staged_cells(31, 32), CONFIG, C_MEROLAE)


def test_it_tells_the_stages_of_cells_that_it_has_not_seen(classifier):
    cells = staged_cells(33)
    judged = [classifier.stage_of(c.labels, C_MEROLAE, c.voxel_size) for c in cells]
    right = [found == cell.stage for cell, (found, _) in zip(cells, judged, strict=True)]
    assert np.mean(right) >= 0.8
    assert all(0.2 < confidence <= 1 for _, confidence in judged)


def test_training_repeats_itself_and_says_what_it_learnt_from(classifier):
    assert train_classifier(staged_cells(31, 32), CONFIG, C_MEROLAE) == classifier
    assert classifier.metadata["training"] == CONFIG.model_dump(mode="json")
    assert sum(classifier.metadata["cells"].values()) == len(staged_cells(31, 32))
    assert classifier.stages == (1, 2, 3, 4, 5)


def test_probabilities_are_those_of_the_stated_formula(classifier):
    cell = staged_cells(33)[2]
    features = stage_features(cell.labels, C_MEROLAE, cell.voxel_size)
    values = np.array([features[name] for name in classifier.features])
    x = np.clip((values - classifier.centre) / classifier.scale, -4, 4)
    odds = np.exp(np.array(classifier.weights) @ x + classifier.offset)
    assert classifier.probabilities(values[None])[0] == pytest.approx(odds / odds.sum())
    stage, confidence = classifier.classify(features)
    assert (stage, confidence) == (int(odds.argmax()) + 1, pytest.approx(odds.max() / odds.sum()))


def test_a_missing_organelle_says_nothing_and_none_at_all_leaves_the_stage_open(classifier):
    cell = staged_cells(33)[4]
    assert cell.stage == 5
    without = np.where(cell.labels == 4, 1, cell.labels).astype(np.uint8)
    assert classifier.stage_of(without, C_MEROLAE, cell.voxel_size)[0] == 5
    assert classifier.stage_of((cell.labels > 0).astype(np.uint8), C_MEROLAE, cell.voxel_size) == (None, 0.0)
    assert classifier.stage_of(np.zeros_like(cell.labels), C_MEROLAE, cell.voxel_size) == (None, 0.0)


def test_what_lies_far_out_counts_no_more_than_the_end_of_the_scale(classifier):
    far, end = (np.array(classifier.centre) + n * np.array(classifier.scale) for n in (1e9, 4))
    assert classifier.probabilities(far[None]) == pytest.approx(classifier.probabilities(end[None]))


def test_fit_finds_the_least_of_its_function():
    """Two stages that one feature tells apart by chance: the slope of the loss is zero at what was found."""
    rng = np.random.default_rng(0)
    features = np.full((400, len(FEATURES)), np.nan)
    features[:, 0] = rng.normal(size=400)
    truth = np.where(rng.random(400) < 1 / (1 + np.exp(-2 * features[:, 0])), 4, 2)
    found = fit(features, truth, 1e-6, C_MEROLAE, {})
    assert found.stages == (2, 4)
    chances = found.probabilities(features)
    assert chances[:, 1].mean() == pytest.approx(np.mean(truth == 4), abs=1e-3)
    assert (chances[:, 1] * features[:, 0]).mean() == pytest.approx(((truth == 4) * features[:, 0]).mean(), abs=1e-3)
    slope = (found.weights[1][0] - found.weights[0][0]) / found.scale[0]
    assert slope == pytest.approx(2, abs=0.5)


def test_file_goes_round(classifier, tmp_path):
    path = save_classifier(classifier, tmp_path / "made" / "stage.json")
    assert load_classifier(path) == classifier
    assert [p.name for p in path.parent.iterdir()] == ["stage.json"]
    with pytest.raises(InputError, match="let it end in .json"):
        save_classifier(classifier, tmp_path / "stage.pickle")


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"weights": [1]}),
        b"",
        b"\xff\xfe{}",
        b"[1, 2]",
        b'{"weights": [[1]]}',
        b'{"format": 1, "stages": [1, 2]}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_no_classifier_is_refused(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_classifier(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "format 1"),
        ({"extra": 1}, "extra"),
        ({"stages": [1, 2, 3, 4, 6]}, "stages"),
        ({"stages": [2, 1, 3, 4, 5]}, "ascend"),
        ({"stages": [1]}, "stages"),
        ({"offset": [0.0]}, "do not fit"),
        ({"centre": [0.0]}, "do not fit"),
        ({"weights": [[0.0]] * 5}, "do not fit"),
        ({"offset": [float("nan")] * 5}, "offset"),
        ({"scale": [0.0] * len(FEATURES)}, "scale"),
        ({"features": ["temperature"]}, "unknown features temperature"),
        ({"taxonomy": {"classes": [{"id": 0, "name": "outside"}, {"id": 1, "name": "vesicle"}]}}, "lacks"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(classifier, tmp_path, changes, reason):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**classifier.model_dump(mode="json"), **changes}))
    with pytest.raises(InputError, match=reason):
        load_classifier(path)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_classifier(tmp_path / "absent.json")


def test_nothing_to_learn_from_is_refused():
    cells = staged_cells(31, 32)
    with pytest.raises(InputError, match="states no stage"):
        train_classifier([], CONFIG, C_MEROLAE)
    with pytest.raises(InputError, match="stage 4 alone"):
        train_classifier([c for c in cells if c.stage == 4], CONFIG, C_MEROLAE)
    other = Taxonomy(classes=(OrganelleClass(id=0, name="outside"), OrganelleClass(id=1, name="nucleus")))
    with pytest.raises(InputError, match="has no plastid, mitochondrion, peroxisome"):
        train_classifier(cells, CONFIG, other)


def test_stages_that_do_not_occur_are_not_named():
    some = [c for c in staged_cells(31, 32) if c.stage in (2, 5)]
    assert train_classifier(some, CONFIG, C_MEROLAE).stages == (2, 5)
