"""Training: it learns, repeats itself, keeps the best and says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import repeat
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.evaluation.overlap import ClassCounts
from cmseg_core.organelles import epochs
from cmseg_core.organelles.dataset import SectionSampler, cube_of
from cmseg_core.organelles.epochs import (
    RETREATS,
    Listener,
    TrainingDiverged,
    learning_rate,
    run_epochs,
    score_sections,
)
from cmseg_core.organelles.inference import axes_of, label_cell
from cmseg_core.organelles.model import load_model, save_model
from cmseg_core.organelles.normalization import FusedBatchNormalization
from cmseg_core.organelles.training import UNTIL_THE_CLOCK, TrainingConfig, TrainingResult, train
from cmseg_core.schema import C_MEROLAE, OrganellesConfig, PreprocessConfig
from tests.organelles.toy import TAXONOMY, toy_cell

PLAIN = PreprocessConfig(bilateral_spatial_sigma=0)
TINY = TrainingConfig(
    preset="custom",
    width=4,
    depth=1,
    section_size=32,
    epochs=2,
    steps_per_epoch=3,
    batch_size=4,
    validation_batches=2,
    precision="float32",
)


def tiny(seed: int = 0, **options) -> TrainingResult:
    config = TINY.model_copy(update={"seed": seed})
    return train([toy_cell(0)], config, TAXONOMY, preprocess=PLAIN, validation=[toy_cell(1)], **options)


@pytest.fixture(scope="module")
def once() -> tuple[TrainingResult, list[dict]]:
    rows: list[dict] = []
    return tiny(on_epoch=rows.append), rows


def test_a_cell_is_learnt_from_scratch() -> None:
    cell = toy_cell(0)
    changes = {"width": 8, "steps_per_epoch": 40, "batch_size": 8, "learning_rate": 2e-2, "augmentation": None}
    result = train([cell], TINY.model_copy(update=changes), TAXONOMY, preprocess=PLAIN)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    found = label_cell(cell, result.model, OrganellesConfig(filter="none"), PLAIN)
    scores = ClassCounts(TAXONOMY).add(cell.labels, found.labels).iou()
    assert min(scores.values()) > 0.8, scores


@pytest.mark.parametrize("validated", [False, True])
def test_a_model_looks_across_no_axis_across_which_it_learnt_nothing(validated: bool) -> None:
    whole = toy_cell(0)
    thin = replace(whole, image=whole.image[14:19], labels=whole.labels[14:19], field=True)
    kept = [thin] if validated else []
    model = train([thin], TINY, TAXONOMY, preprocess=PLAIN, validation=kept).model
    assert model.fusion is not None
    np.testing.assert_allclose(model.fusion.sum(axis=1), [len(TAXONOMY), 0, 0])
    cube = whole.image
    assert axes_of(cube, model, OrganellesConfig()) == (0,)
    assert axes_of(cube, model, OrganellesConfig(fusion="mean")) == (0, 1, 2)
    # What a model knew before, it keeps.
    knowing = train([whole], TINY, TAXONOMY, preprocess=PLAIN).model
    tuned = train([thin], TINY, TAXONOMY, preprocess=PLAIN, validation=kept, initial=knowing).model
    assert axes_of(cube, tuned, OrganellesConfig()) == (0, 1, 2)


def test_training_repeats_itself_by_seed(once) -> None:
    again, other = tiny(), tiny(seed=1)
    first = once[0].model.network.get_weights()
    for a, b in zip(first, again.model.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other.model.network.get_weights(), strict=True))


def test_every_epoch_is_told_and_the_model_carries_its_story(once, tmp_path) -> None:
    result, rows = once
    assert rows == result.history and [row["epoch"] for row in rows] == [1, 2]
    assert set(rows[0]["iou"]) == set(TAXONOMY.names)
    assert all(math.isfinite(row["loss"]) and row["sections_per_second"] > 0 for row in rows)
    loaded = load_model(save_model(result.model, tmp_path / "m.keras"))
    assert loaded.metadata == result.model.metadata
    assert loaded.metadata["training"]["width"] == 4 and loaded.metadata["validation"] == ["toy1"]
    assert loaded.metadata["best"]["mean_iou"] == max(row["mean_iou"] for row in rows)
    assert loaded.temperature == result.model.temperature != 1.0
    assert loaded.fusion is not None
    np.testing.assert_allclose(loaded.fusion, 1 / 3)  # one cell kept for validation proves nothing


class ScriptedOptimizer:
    """Stands for an optimiser: its one variable is the number of steps taken."""

    def __init__(self, network: ScriptedNetwork) -> None:
        self.learning_rate = 0.0
        self.variables = [network.steps]

    def build(self, variables: list) -> None:
        """There is nothing to build."""


class ScriptedNetwork:
    """Stands for a network: its weight is the number of steps taken, its losses are given."""

    def __init__(self, losses: Iterable[float]) -> None:
        self.losses, self.steps, self.rates = iter(losses), keras.Variable(0, dtype="int32"), []
        self.trainable_variables: list = []
        self.optimizer = ScriptedOptimizer(self)

    def train_on_batch(self, images: np.ndarray, labels: np.ndarray) -> float:
        self.rates.append(self.optimizer.learning_rate)
        self.steps.assign_add(1)
        return next(self.losses)

    def reset_metrics(self) -> None:
        """Nothing is averaged here."""

    def get_weights(self) -> list[np.ndarray]:
        return [np.array(self.steps)]

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self.steps.assign(weights[0])


def scripted(losses: Iterable[float] | ScriptedNetwork, batches: SectionSampler, held_out: list | None = None, **more):
    options = {name: more.pop(name) for name in ("listener", "checkpoint") if name in more}
    config = TINY.model_copy(update={"steps_per_epoch": 2, "epochs": 3, **more})
    network = losses if isinstance(losses, ScriptedNetwork) else ScriptedNetwork(losses)
    return run_epochs(network, batches, held_out or [], config, TAXONOMY, **options)


@pytest.fixture(scope="module")
def batches() -> SectionSampler:
    return SectionSampler([cube_of(toy_cell(0), 32, PLAIN)], TAXONOMY, 32, batch_size=2, seed=0)


def test_the_best_epoch_on_validation_is_kept(batches, monkeypatch) -> None:
    scores = iter([0.2, 0.7, 0.4])
    monkeypatch.setattr(epochs, "score_sections", lambda *_: ({}, next(scores)))
    history, best = scripted(repeat(1.0), batches, held_out=[batches.batch(0)])
    assert [row["mean_iou"] for row in history] == [0.2, 0.7, 0.4]
    assert best[0] == 4


def test_without_validation_the_last_epoch_is_kept(batches) -> None:
    history, best = scripted(iter([3.0, 1.0, 2.0, 2.0, 9.0, 9.0]), batches)
    assert [row["loss"] for row in history] == [2.0, 2.0, 9.0]
    assert best[0] == 6


def test_a_loss_that_is_no_number_takes_the_training_back(batches) -> None:
    lines: list[str] = []
    network = ScriptedNetwork([1.0, 1.0, 2.0, math.nan, 3.0, 3.0, 4.0, 4.0])
    listener = Listener(say=lines.append)
    history, best = scripted(network, batches, listener=listener, schedule="constant")
    assert [row["loss"] for row in history] == [1.0, 3.0, 4.0]
    assert best[0] == 6  # the steps that came to nothing are not in the weights
    assert network.rates == pytest.approx([2e-3] * 4 + [1e-3] * 4)
    assert lines == ["the loss is not finite: going back to epoch 2, step 1, with half the learning rate"]


def test_a_training_that_keeps_diverging_is_given_up(batches) -> None:
    network = ScriptedNetwork(repeat(math.inf))
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        scripted(network, batches)
    assert len(network.rates) == 1 + RETREATS


def test_weights_that_are_no_numbers_take_the_training_back(batches) -> None:
    class Spoilt(ScriptedNetwork):
        def get_weights(self) -> list[np.ndarray]:
            return [np.array(math.nan if len(self.rates) == 4 else float(self.steps))]

    network = Spoilt(repeat(1.0))
    history, best = scripted(network, batches)
    assert (len(history), len(network.rates), best[0]) == (3, 8, 6)


def test_a_training_without_progress_is_ended_by_its_patience(batches, monkeypatch) -> None:
    scores = iter([0.2, 0.7, 0.4, 0.5, 0.9])
    monkeypatch.setattr(epochs, "score_sections", lambda *_: ({}, next(scores)))
    history, best = scripted(repeat(1.0), batches, held_out=[batches.batch(0)], epochs=9, patience=2)
    assert len(history) == 4
    assert best[0] == 4
    with pytest.raises(InputError, match="needs cells for validation"):
        train([toy_cell(0)], TINY.model_copy(update={"patience": 2}), TAXONOMY, preprocess=PLAIN)


def test_training_stops_at_the_wall_clock_limit_with_a_low_rate(batches) -> None:
    history, _ = scripted(repeat(1.0), batches, epochs=100_000, max_minutes=0.01)
    assert 1 <= len(history) < 100_000
    assert history[-1]["learning_rate"] < 0.1 * TINY.learning_rate


def test_with_a_time_limit_the_clock_ends_the_training_unless_epochs_are_asked_for() -> None:
    assert TrainingConfig.of("best").epochs == 30
    timed = TrainingConfig.of("best", max_minutes=60)
    assert timed.epochs == UNTIL_THE_CLOCK
    assert TrainingConfig.model_validate(timed.model_dump()) == timed
    assert TrainingConfig.of("best", max_minutes=60, epochs=7).epochs == 7
    assert TrainingConfig.of("paper", max_minutes=60).epochs == 5


def test_fields_have_defaults_of_their_own() -> None:
    cells, fields = TrainingConfig.of("best"), TrainingConfig.of("best", fields=True)
    assert (fields.width, fields.section_size) == (32, 256)
    assert cells.width < fields.width and cells.section_size < fields.section_size
    assert TrainingConfig.of("best", fields=True, width=8).width == 8
    assert TrainingConfig.of("paper", fields=True) == TrainingConfig.of("paper")


def test_scores_are_of_all_sections_together() -> None:
    labels = np.array([[[0, 1], [1, 2]], [[2, 2], [0, 0]]], np.int32)
    found = np.array([[[0, 1], [2, 2]], [[2, 2], [0, 1]]])
    network = SimpleNamespace(predict_on_batch=lambda images: np.eye(4)[found[[int(images[0])]]])
    held_out = [(np.array([i]), labels[[i]]) for i in (0, 1)]
    iou, mean = score_sections(network, held_out, TAXONOMY)
    assert iou == {"outside": 2 / 3, "cell": 1 / 3, "big": 3 / 4, "small": None}
    assert mean == pytest.approx((1 / 3 + 3 / 4) / 2)


def test_a_class_that_is_not_in_the_labels_has_no_say_in_the_mean() -> None:
    labels = np.array([[[0, 1], [1, 2]]], np.int32)
    network = SimpleNamespace(predict_on_batch=lambda images: np.eye(4)[np.array([[[3, 1], [1, 2]]])])
    iou, mean = score_sections(network, [(np.zeros(1), labels)], TAXONOMY)
    assert iou["small"] == 0
    assert mean == 1


def test_fine_tuning_starts_from_the_given_weights(once) -> None:
    still = TINY.model_copy(update={"learning_rate": 1e-12, "weight_decay": 0, "epochs": 1, "steps_per_epoch": 1})
    wide = still.model_copy(update={"width": 9})  # the architecture is the initial model's
    result = train([toy_cell(2)], wide, TAXONOMY, preprocess=PLAIN, initial=once[0].model)
    for before, after in zip(
        once[0].model.network.trainable_variables, result.model.network.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(np.asarray(before), np.asarray(after), atol=1e-6)
    assert result.model.metadata["fine_tuned"]
    with pytest.raises(InputError, match="knows the classes"):
        train([toy_cell(2)], still, C_MEROLAE, preprocess=PLAIN, initial=once[0].model)


def test_a_model_that_comes_to_see_more_sections_says_the_same_at_first(once) -> None:
    still = {"learning_rate": 1e-12, "weight_decay": 0, "epochs": 1, "steps_per_epoch": 1, "channels": 5}
    narrow = once[0].model
    wide = train([toy_cell(2)], TINY.model_copy(update=still), TAXONOMY, preprocess=PLAIN, initial=narrow).model
    assert (narrow.channels, wide.channels) == (1, 5)
    sections = np.random.default_rng(0).random((2, 32, 32, 5), dtype=np.float32)
    before, after = narrow.network.get_weights()[0], wide.network.get_weights()[0]
    np.testing.assert_allclose(after[:, :, 2:3], before, atol=1e-6)
    assert np.abs(np.delete(after, 2, axis=2)).max() < 1e-6
    wide.network.set_weights([after, *narrow.network.get_weights()[1:]])  # the statistics of the one step aside
    expected = narrow.network.predict_on_batch(sections[..., 2:3])
    np.testing.assert_allclose(wide.network.predict_on_batch(sections), expected, atol=1e-4)
    again = train(
        [toy_cell(2)], TINY.model_copy(update={**still, "channels": 1}), TAXONOMY, preprocess=PLAIN, initial=wide
    )
    assert again.model.channels == 5


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_gives_a_plain_network(policy: str) -> None:
    result = train(
        [toy_cell(0)], TINY.model_copy(update={"precision": policy, "epochs": 1}), TAXONOMY, preprocess=PLAIN
    )
    assert math.isfinite(result.history[0]["loss"])
    assert {layer.compute_dtype for layer in result.model.network.layers} == {"float32"}
    assert not any(isinstance(layer, FusedBatchNormalization) for layer in result.model.network.layers)


def test_learning_rates_follow_their_schedules() -> None:
    paper = TrainingConfig.of("paper")
    assert [learning_rate(paper, 0.5, e) for e in (0, 1, 4)] == pytest.approx([1e-5, 0.95e-5, 1e-5 * 0.95**4])
    cosine = TrainingConfig.of("best")
    rates = [learning_rate(cosine, p, 0) for p in (0.0, 0.03, 0.5, 1.0)]
    assert rates[1] == pytest.approx(2e-3) and rates[3] == pytest.approx(2e-5)
    assert rates[0] < rates[1] > rates[2] > rates[3]


def test_presets_and_their_limits() -> None:
    paper = TrainingConfig.of("paper", seed=3)
    assert (paper.width, paper.section_size, paper.epochs, paper.loss, paper.augmentation) == (
        64,
        256,
        5,
        "tversky",
        None,
    )
    assert paper.preset == "paper" and paper.seed == 3
    with pytest.raises(InputError, match="not a preset"):
        TrainingConfig.of("starter")
    with pytest.raises(InputError, match="colour"):
        TrainingConfig.of("best", colour=1)
    with pytest.raises(InputError, match="multiple of 2"):
        train([toy_cell(0)], TINY.model_copy(update={"section_size": 31}), TAXONOMY, preprocess=PLAIN)
    with pytest.raises(InputError, match="no cell"):
        train([], TINY, TAXONOMY, preprocess=PLAIN)
    with pytest.raises(InputError, match=r"limit is 0.5 GB; raise CMSEG_MAX_MEMORY_GB"):
        train([toy_cell(0)], TINY, TAXONOMY, preprocess=PLAIN, max_memory_gb=0.5)
    with pytest.raises(InputError, match=r"GB of memory more, .* free; set a smaller batch_size"):
        train([toy_cell(0)], TINY.model_copy(update={"batch_size": 10**8}), TAXONOMY, preprocess=PLAIN)
    with pytest.raises(InputError, match="no labelled voxel"):
        empty = replace(toy_cell(0), labels=np.zeros((32, 32, 32), np.uint8))
        train([empty], TINY, TAXONOMY, preprocess=PLAIN)
