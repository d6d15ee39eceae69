"""Training: it learns, repeats itself, keeps the best and says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.evaluation.overlap import ClassCounts
from cmseg_core.organelles import epochs
from cmseg_core.organelles.dataset import SectionSampler, cube_of
from cmseg_core.organelles.epochs import TrainingDiverged, learning_rate, run_epochs, score_sections
from cmseg_core.organelles.inference import label_cell
from cmseg_core.organelles.model import load_model, save_model
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


class ScriptedNetwork:
    """Stands for a network: its weights are the number of steps taken, its losses are given."""

    def __init__(self, losses: Iterable[float]) -> None:
        self.losses, self.steps = iter(losses), 0
        self.optimizer = SimpleNamespace(learning_rate=0.0)

    def train_on_batch(self, images: np.ndarray, labels: np.ndarray) -> float:
        self.steps += 1
        return next(self.losses)

    def reset_metrics(self) -> None:
        """Nothing is averaged here."""

    def get_weights(self) -> list[np.ndarray]:
        return [np.array(self.steps)]


def scripted(losses: Iterable[float], batches: SectionSampler, held_out: list | None = None, **changes):
    config = TINY.model_copy(update={"steps_per_epoch": 2, "epochs": 3, **changes})
    return run_epochs(ScriptedNetwork(losses), batches, held_out or [], config, TAXONOMY, None)


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


def test_divergence_is_an_error_at_first_and_a_stop_later(batches) -> None:
    with pytest.raises(TrainingDiverged):
        scripted([1.0, math.nan], batches)
    history, best = scripted([1.0, 1.0, 1.0, math.inf], batches)
    assert len(history) == 1 and best[0] == 2


def test_training_stops_at_the_wall_clock_limit_with_a_low_rate(batches) -> None:
    history, _ = scripted(repeat(1.0), batches, epochs=100_000, max_minutes=0.01)
    assert 1 <= len(history) < 100_000
    assert history[-1]["learning_rate"] < 0.1 * TINY.learning_rate


def test_with_a_time_limit_the_clock_ends_the_training_unless_epochs_are_asked_for() -> None:
    assert TrainingConfig.of("starter").epochs == 30
    timed = TrainingConfig.of("starter", max_minutes=60)
    assert timed.epochs == UNTIL_THE_CLOCK
    assert TrainingConfig.model_validate(timed.model_dump()) == timed
    assert TrainingConfig.of("starter", max_minutes=60, epochs=7).epochs == 7
    assert TrainingConfig.of("paper", max_minutes=60).epochs == 5


def test_fields_have_defaults_of_their_own() -> None:
    cells, fields = TrainingConfig.of("starter"), TrainingConfig.of("starter", fields=True)
    assert (fields.width, fields.section_size) == (32, 256)
    assert cells.width < fields.width and cells.section_size < fields.section_size
    assert TrainingConfig.of("starter", fields=True, width=8).width == 8
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


def test_learning_rates_follow_their_schedules() -> None:
    paper = TrainingConfig.of("paper")
    assert [learning_rate(paper, 0.5, e) for e in (0, 1, 4)] == pytest.approx([1e-5, 0.95e-5, 1e-5 * 0.95**4])
    cosine = TrainingConfig.of("starter")
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
        TrainingConfig.of("best")
    with pytest.raises(InputError, match="colour"):
        TrainingConfig.of("starter", colour=1)
    with pytest.raises(InputError, match="multiple of 2"):
        train([toy_cell(0)], TINY.model_copy(update={"section_size": 31}), TAXONOMY, preprocess=PLAIN)
    with pytest.raises(InputError, match="no cell"):
        train([], TINY, TAXONOMY, preprocess=PLAIN)
    with pytest.raises(InputError, match="no labelled voxel"):
        empty = replace(toy_cell(0), labels=np.zeros((32, 32, 32), np.uint8))
        train([empty], TINY, TAXONOMY, preprocess=PLAIN)
