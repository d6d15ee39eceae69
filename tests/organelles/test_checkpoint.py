"""A training that is broken off goes on from its checkpoint to the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.organelles import epochs
from cmseg_core.organelles.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint, training_key
from cmseg_core.organelles.training import TrainingConfig, TrainingResult, train
from cmseg_core.schema import PreprocessConfig
from tests.organelles.toy import TAXONOMY, toy_cell

PLAIN = PreprocessConfig(bilateral_spatial_sigma=0)
SMALL = TrainingConfig(
    preset="custom", width=8, depth=1, section_size=32, epochs=2, steps_per_epoch=4, batch_size=2, validation_batches=1
)


class Killed(BaseException):
    """Stands for a signal."""


def small(config: TrainingConfig = SMALL, **options) -> TrainingResult:
    return train([toy_cell(0)], config, TAXONOMY, preprocess=PLAIN, validation=[toy_cell(1)], **options)


def broken_off(at: int, path: Path, config: TrainingConfig = SMALL) -> None:
    """Train until a step, and no further."""

    def on_step(row: dict) -> None:
        if (row["epoch"] - 1) * row["steps"] + row["step"] == at:
            raise Killed

    with pytest.raises(Killed):
        small(config, on_step=on_step, checkpoint=path)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "precision": "mixed_float16"}], ids=["muon", "adamw"])
def test_a_training_taken_up_ends_as_if_it_had_not_been_broken_off(changes, tmp_path, monkeypatch) -> None:
    config, path, lines = SMALL.model_copy(update=changes), tmp_path / "new" / "c.npz", []
    whole = small(config)
    monkeypatch.setattr(epochs, "KEEP_SECONDS", 0.0)
    broken_off(3, path, config)  # in mid-epoch: what was kept last is the state after step 2
    broken_off(6, path, config)
    assert load_checkpoint(path).progress.epoch == 1
    resumed = small(config, checkpoint=path, say=lines.append)
    assert lines == ["taking up the training at epoch 2, step 2"]
    for a, b in zip(whole.model.network.get_weights(), resumed.model.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.model.temperature == resumed.model.temperature
    timeless = [[{k: v for k, v in row.items() if "second" not in k} for row in r.history] for r in (whole, resumed)]
    assert timeless[0] == timeless[1]


def test_the_best_weights_and_the_time_spent_are_taken_up_too(tmp_path, monkeypatch) -> None:
    path = tmp_path / "c.npz"
    scores = iter([0.9, 0.1])
    monkeypatch.setattr(epochs, "score_sections", lambda *_: ({}, next(scores)))
    broken_off(5, path)
    kept = load_checkpoint(path)
    assert (kept.progress.best_score, kept.progress.epoch, kept.progress.losses) == (0.9, 1, [])
    resumed = small(checkpoint=path)
    for a, b in zip(kept.best, resumed.model.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kept.progress.seconds = 3600.0
    save_checkpoint(kept, path)
    late = small(SMALL.model_copy(update={"max_minutes": 30.0, "epochs": 50}), checkpoint=path)
    assert len(late.history) == 1


def test_a_checkpoint_is_whole_or_refused(tmp_path) -> None:
    path = tmp_path / "c.npz"
    state = Checkpoint(Progress(losses=[0.1]), [np.ones(3, np.float32)], [np.array(7)], [np.zeros((2, 2))])
    save_checkpoint(state, path)
    loaded = load_checkpoint(path)
    assert loaded.progress == state.progress
    assert loaded.optimizer[0].dtype == state.optimizer[0].dtype
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    assert not replace(state, weights=[np.array([1.0, np.nan])]).finite()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged checkpoint.*--fresh"):
        load_checkpoint(path)


def test_everything_that_decides_a_training_is_in_its_key() -> None:
    cell, other = toy_cell(0), toy_cell(1)

    def key(cells=(cell,), validation=(), config=SMALL, preprocess=PLAIN, initial=None) -> str:
        return training_key(cells, validation, config, TAXONOMY, preprocess, initial)

    relabelled = cell.labels.copy()
    relabelled[0, 0, 0] = 1
    model = small(SMALL.model_copy(update={"epochs": 1, "steps_per_epoch": 1})).model
    keys = [
        key(),
        key((cell, other)),
        key((cell,), (other,)),
        key((replace(cell, labels=relabelled),)),
        key((replace(cell, stage=2),)),
        key((replace(cell, others=cell.labels > 0),)),
        key(config=SMALL.model_copy(update={"seed": 1})),
        key(preprocess=PreprocessConfig(bilateral_spatial_sigma=1)),
        key(initial=model),
    ]
    assert len(set(keys)) == len(keys)
    assert key((toy_cell(0),)) == key()
