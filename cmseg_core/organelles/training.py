"""Training of the organelle network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from cmseg_core.errors import InputError
from cmseg_core.evaluation.drift import Usual, cell_figures, usual
from cmseg_core.organelles.augmentation import AugmentationConfig
from cmseg_core.organelles.calibration import apply_temperature, fit_temperature
from cmseg_core.organelles.dataset import Batch, Cube, LabelledCell, SectionSampler, cube_of, section_axes
from cmseg_core.organelles.epochs import Listener, compile_network, run_epochs
from cmseg_core.organelles.fusion import equal_weights, weights_of
from cmseg_core.organelles.memory import check_memory
from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.organelles.network import Precision, build_unet, precision
from cmseg_core.organelles.normalization import FusedBatchNormalization
from cmseg_core.organelles.optimizer import OptimizerName
from cmseg_core.organelles.trial import delivered_on, directions_on
from cmseg_core.organelles.weighting import fit_weights
from cmseg_core.schema import Frozen, PreprocessConfig, Taxonomy, first_problem

Positive = Annotated[int, Field(ge=1)]
UNTIL_THE_CLOCK = 1_000_000
"""Epochs of a training that its time limit ends."""
VALIDATION_SEED = 982_451_653
"""Keeps the sections of the validation apart from those of the training, whatever its seed."""


class TrainingConfig(Frozen):
    """How a network is trained. :meth:`of` gives the presets."""

    preset: Literal["best", "paper", "custom"] = "best"
    width: Positive = 16
    depth: Positive = 4
    attention: bool = True
    channels: Literal[1, 3, 5] = 1
    """Neighbouring sections seen at once; the paper's network sees one."""
    section_size: Positive = 128
    epochs: Positive = 30
    """Where `max_minutes` is given and this is not, the clock alone ends the training."""
    steps_per_epoch: Positive = 200
    batch_size: Positive = 8
    """Small batches learn more from as many sections, which is what counts where a processor sets the pace."""
    optimizer: OptimizerName = "muon"
    """``muon``: for the kernels of the convolutions, with AdamW for everything else."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    schedule: Literal["cosine", "paper", "constant"] = "cosine"
    """``cosine``: a warm-up over the first 3 %, then down to 1 %. ``paper``: 0.95 times as much each epoch."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of the kernels; biases and normalisation are left alone."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    loss: Literal["compound", "tversky", "focal_tversky"] = "compound"
    augmentation: AugmentationConfig | None = AugmentationConfig()
    """None: nothing but sections along all three axes."""
    precision: Precision = "mixed_bfloat16"
    """The statistics of batch normalisation and the softmax are computed in float32 all the same."""
    validation_batches: Positive = 24
    """Batches of validation sections scored after each epoch."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock limit; the schedule is shortened to end with it, so such a run cannot be repeated exactly."""
    patience: Positive | None = None
    """End after so many epochs without a better score on the validation. Off by default: with the schedule ``cosine``
    the scores rise until the end, where the rate is low, and a run that is cut short never gets there."""
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _clock_for_epochs(cls, given: Any) -> Any:
        timed = isinstance(given, dict) and given.get("max_minutes") is not None
        return {"epochs": UNTIL_THE_CLOCK, **given} if timed else given

    @classmethod
    def of(cls, preset: str, *, fields: bool = False, **changes: Any) -> TrainingConfig:
        """The preset ``best`` or ``paper`` with some settings changed.

        Parameters
        ----------
        preset : str
        fields : bool
            It is for whole fields, not for cells: the settings of :data:`FOR_FIELDS` then hold in ``best``.
        **changes
            Settings that differ.

        Raises
        ------
        InputError
            Where there is no such preset, or a field is unknown or out of range.
        """
        if preset not in PRESETS:
            raise InputError(preset, "is not a preset", f"use {' or '.join(PRESETS)}")
        try:
            suited = FOR_FIELDS if fields and preset == "best" else {}
            return cls.model_validate({**PRESETS[preset], **suited, **changes, "preset": preset})
        except ValidationError as error:
            mend = f"the settings are {', '.join(cls.model_fields)}"
            raise InputError("training settings", first_problem(error), mend) from error


PRESETS: dict[str, dict[str, Any]] = {
    "best": {},
    "paper": {
        "width": 64,
        "section_size": 256,
        "epochs": 5,
        "steps_per_epoch": 3024,
        "batch_size": 16,
        "optimizer": "adamw",
        "learning_rate": 1e-5,
        "schedule": "paper",
        "weight_decay": 0.004,
        "clip_norm": None,
        "loss": "tversky",
        "augmentation": None,
    },
}
"""``paper``: what Kousaka et al. 2025 state. Batch size and weight decay are not stated; the steps of an epoch are the
63 x 3 x 256 sections of 63 cells."""

FOR_FIELDS: dict[str, Any] = {
    "width": 32,
    "section_size": 256,
    "batch_size": 4,
    "steps_per_epoch": 100,
    "validation_batches": 12,
}
"""What differs by default where all that is learnt from are fields. A cell is brought to the size of the sections, so
that small ones show it whole; a field keeps its scale, and what one sees of it grows with the sections."""


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A trained model and what happened on the way: one dict an epoch (see :func:`train`)."""

    model: OrganelleModel
    history: list[dict[str, Any]]


def train(
    cells: Sequence[LabelledCell],
    config: TrainingConfig,
    taxonomy: Taxonomy,
    *,
    preprocess: PreprocessConfig | None = None,
    validation: Sequence[LabelledCell] = (),
    initial: OrganelleModel | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    say: Callable[[str], None] | None = None,
    checkpoint: Path | None = None,
    max_memory_gb: float | None = None,
) -> TrainingResult:
    """Train a network on labelled cells.

    The weights kept are those of the epoch with the best mean IoU of the foreground classes on the validation cells,
    or the last ones where there is no validation. With validation cells the weights of the directions and the
    temperature are fitted too. A direction across which nothing was learnt, since all volumes are thin along it and
    `initial` does not know it, has no weight.

    Parameters
    ----------
    cells : sequence of LabelledCell
    config : TrainingConfig
    taxonomy : Taxonomy
    preprocess : PreprocessConfig, optional
        The one that inference will use.
    validation : sequence of LabelledCell
        Never trained on.
    initial : OrganelleModel, optional
        Start from its weights (fine-tuning); its architecture then replaces the one of `config`, but for `channels`
        where that is larger: the sections beyond those it knows then begin without weight.
    on_epoch : callable, optional
        Called with a dict after each epoch: ``epoch``, ``epochs``, ``loss``, ``learning_rate``, ``seconds``,
        ``sections_per_second``, and with validation ``mean_iou`` and ``iou`` (class name to number, or None).
    on_step : callable, optional
        Called with a dict after each step: ``epoch``, ``epochs``, ``step`` and ``steps`` of the epoch, ``loss``, and
        ``share`` of the whole training that is done.
    say : callable, optional
        Called with a line where the training is taken up or goes back to an earlier state.
    checkpoint : Path, optional
        File that keeps the state of the training: after every epoch, and every five minutes of a long one. Where the
        file is there the training goes on from it, to the weights that it would have reached without a break. The
        caller names it by :func:`cmseg_core.organelles.checkpoint.training_key`, and removes it.
    max_memory_gb : float, optional
        Memory that the process may use; by default what the machine has free.

    Returns
    -------
    TrainingResult

    Raises
    ------
    InputError
        Where the cells cannot be used, `initial` has other classes, or there is too little memory.
    cmseg_core.organelles.epochs.TrainingDiverged
        Where the loss is not finite, and going back with a lower learning rate has not helped.
    """
    preprocess = preprocess or PreprocessConfig()
    architecture = _architecture(config, taxonomy, initial)
    size, channels = _section_size(config, initial), int(architecture["channels_in"])
    if config.patience is not None and not validation:
        raise InputError("patience", "needs cells for validation", "leave it out, or validate with some")
    check_memory(cells, validation, config, size, architecture, max_memory_gb)
    cubes = [cube_of(cell, size, preprocess) for cell in cells]
    sampler = SectionSampler(
        cubes,
        taxonomy,
        size,
        batch_size=config.batch_size,
        seed=config.seed,
        augmentation=config.augmentation,
        channels=channels,
    )
    held_out_cubes = [cube_of(cell, size, preprocess) for cell in validation]
    held_out = _validation_batches(held_out_cubes, config, taxonomy, size, channels)
    with precision(config.precision):
        network = build_unet(**architecture, seed=config.seed, normalization=FusedBatchNormalization)
    if initial is not None:
        network.set_weights(_widened(initial, channels))
    compile_network(network, config)

    listener = Listener(on_epoch, on_step, say)
    history, best = run_epochs(network, sampler, held_out, config, taxonomy, listener, checkpoint)
    plain = _in_float32(architecture, best)
    metadata = {
        "architecture": architecture,
        "training": config.model_dump(mode="json"),
        "preprocess": preprocess.model_dump(mode="json"),
        "cells": [cell.name for cell in cells],
        "validation": [cell.name for cell in validation],
        "epochs": len(history),
        "best": max(history, key=lambda row: row.get("mean_iou") or 0.0) if held_out else history[-1],
        "fine_tuned": initial is not None,
        # Against which the nights are held.
        "looks": {name: one.model_dump() for name, one in _looks(cells, taxonomy).items()},
    }
    learnt = sorted({axis for cube in cubes for axis in section_axes(cube.labels.shape, size)} | _known_axes(initial))
    weights = weights_of("mean", None, learnt, len(taxonomy))
    model = OrganelleModel(plain, taxonomy, size, 1.0, metadata, weights)
    if held_out_cubes:
        model = _fitted(model, validation, held_out_cubes, learnt, preprocess)
    return TrainingResult(model, history)


def _looks(cells: Sequence[LabelledCell], taxonomy: Taxonomy) -> dict[str, Usual]:
    """Grey levels and shares of classes in the cells of a training."""
    return usual(cell_figures(cell.image, cell.labels, taxonomy) for cell in cells)


def _known_axes(initial: OrganelleModel | None) -> set[int]:
    """Axes across which the model that a training starts from takes sections."""
    if initial is None:
        return set()
    weights = equal_weights(len(initial.taxonomy)) if initial.fusion is None else initial.fusion
    return {axis for axis, shares in enumerate(weights) if shares.any()}


def _fitted(
    model: OrganelleModel,
    cells: Sequence[LabelledCell],
    cubes: list[Cube],
    learnt: list[int],
    preprocess: PreprocessConfig,
) -> OrganelleModel:
    """The model with its weights of the directions, and the temperature of what they then say together."""
    delivered = delivered_on(model, cells, preprocess)
    said, truth, cell = directions_on(model, cubes)
    softened = apply_temperature(said, fit_temperature(delivered, equal_weights(len(model.taxonomy))))
    weights = weights_of("model", fit_weights(softened, truth, cell), learnt, len(model.taxonomy))
    return replace(model, fusion=weights, temperature=fit_temperature(delivered, weights))


def _architecture(config: TrainingConfig, taxonomy: Taxonomy, initial: OrganelleModel | None) -> dict[str, Any]:
    if initial is None:
        return {
            "classes": len(taxonomy),
            "section_size": None,
            "width": config.width,
            "depth": config.depth,
            "attention": config.attention,
            "channels_in": config.channels,
        }
    if initial.taxonomy.names != taxonomy.names:
        reason = f"knows the classes {', '.join(initial.taxonomy.names)}"
        raise InputError("initial model", reason, f"start from a model of {', '.join(taxonomy.names)}, or from none")
    if "architecture" not in initial.metadata:
        raise InputError("initial model", "does not state its architecture", "start from a model that cmseg trained")
    known = dict(initial.metadata["architecture"])
    return {**known, "channels_in": max(config.channels, known["channels_in"])}


def _widened(initial: OrganelleModel, channels: int) -> list[NDArray[Any]]:
    """Weights of a model whose first convolution sees `channels` sections, of which it minds those it minded before."""
    kernel, *rest = initial.network.get_weights()
    beyond = (channels - initial.channels) // 2
    return [np.pad(kernel, ((0, 0), (0, 0), (beyond, beyond), (0, 0))), *rest]


def _section_size(config: TrainingConfig, initial: OrganelleModel | None) -> int:
    size = config.section_size if initial is None else initial.section_size
    if size % 2**config.depth:
        raise InputError("section_size", f"{size} is not a multiple of {2**config.depth}", "change it, or the depth")
    return size


def _validation_batches(
    cubes: list[Cube], config: TrainingConfig, taxonomy: Taxonomy, size: int, channels: int
) -> list[Batch]:
    if not cubes:
        return []
    sampler = SectionSampler(
        cubes,
        taxonomy,
        size,
        batch_size=config.batch_size,
        seed=VALIDATION_SEED,
        channels=channels,
        name="validation set",
    )
    return [sampler.batch(number) for number in range(config.validation_batches)]


def _in_float32(architecture: dict[str, Any], weights: list[NDArray[Any]]) -> keras.Model:
    with precision("float32"):
        network = build_unet(**architecture)
    network.set_weights(weights)
    return network
