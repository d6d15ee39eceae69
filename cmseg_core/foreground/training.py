"""Training of a Segment Anything model on labelled cells: a small one from nothing, or any one further.

As in Kirillov et al. 2023 a prompt asks for the object it points at: focal and Dice loss on the masks in the
proportion 20:1 and the squared error of the predicted IoU. A prompt is a point, or a box as a neighbouring section
would give it, a little off (Archit et al., "Segment Anything for microscopy", 2025, prompt so too). Two things differ.
The object is always the whole cell (never its organelles), so every mask token learns the same target; and points
beside all cells are asked too, with an empty target, so that the predicted IoU tells them apart.

A few prompts a picture teach the image encoder slowly. So it learns from a head, which reads the cells and the distance
to their borders at every pixel (:mod:`cmseg_core.foreground.head`) and in the end finds cells without any prompt. A
first part of the training has nothing but this; in the second the prompts teach what answers them, and leave the
embedding to the head.
"""

from __future__ import annotations

import copy
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import edt
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from cmseg_core.errors import InputError
from cmseg_core.foreground.head import CellHead, head_loss
from cmseg_core.foreground.sam import PADDING, Context, SamArchitecture, SamModel, as_colours, build_small, new_head
from cmseg_core.schema import Frozen

Positive = Annotated[int, Field(ge=1)]
_DENSE_TO_PROMPTED = 2
"""Images of a step without prompts, for each one of a step with them."""
_MOST_WORKERS = 8
"""Threads that draw examples: half of the processors, and no more than this."""
_BOX_JITTER = 0.08
"""Standard deviation by which a side of a box is off, of the length of the box."""
_SKEWED_SHARE = 0.5
"""Share of the examples that are turned by any angle and stretched."""
_STRETCH = 0.08
"""Standard deviation of the logarithm of a stretch."""


class SamTrainingConfig(Frozen):
    """How a Segment Anything model is trained."""

    architecture: SamArchitecture = SamArchitecture()
    """Of a model that starts from nothing."""
    steps: Positive = 3000
    images_per_step: Positive = 4
    prompts_per_image: Positive = 8
    background_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of prompts beside all cells."""
    box_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the prompts on cells that are boxes; the others are points."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    """At its highest; falls along a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    dense_share: Annotated[float, Field(ge=0, lt=1)] = 0.45
    """Share of the training, at its start, without prompts, with twice the images a step."""
    freeze_encoder: bool = False
    """Leave the image encoder and the head as they are, and train only what answers prompts."""
    scale: tuple[float, float] = (0.8, 1.5)
    """Range of the random magnification."""
    steps_per_epoch: Positive = 100
    """Steps between two reports (and scores on the validation fields)."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock limit; the schedule is shortened to end with it, so such a run cannot be repeated exactly."""
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, eq=False)
class LabelledField:
    """A field on the isotropic working grid: image uint8 and cells (ids, 0 between cells), both (z, y, x)."""

    image: np.ndarray
    cells: np.ndarray
    name: str = "field"


@dataclass(frozen=True, eq=False)
class TrainedSam:
    """The network with its head, what it is built like (:func:`cmseg_core.foreground.sam.save_sam`), and one dict an
    epoch: ``step``, ``loss``, ``seconds``, and with validation fields ``iou`` of the masks asked for, ``cell_iou`` of
    what the head calls cells and ``depth_error`` of the head in cells, in pixels."""

    network: Any
    head: CellHead
    architecture: SamArchitecture | str
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class Retina:
    """How a network sees a section.

    Attributes
    ----------
    size : int
        Edge of its square input in pixels.
    grid : int
        Edge of the image embedding.
    context : {"grey", "neighbours"}
        What the colour channels hold.
    """

    size: int
    grid: int
    context: Context

    @property
    def low(self) -> int:
        """Edge of the masks that the decoder gives."""
        return 4 * self.grid


def train_sam(
    fields: Sequence[LabelledField],
    config: SamTrainingConfig,
    *,
    validation: Sequence[LabelledField] = (),
    initial: SamModel | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> TrainedSam:
    """Train a small model from nothing, or any model further, on the GPU where there is one.

    Parameters
    ----------
    fields, validation : sequence of LabelledField
        Sections of all three directions are drawn from them.
    config : SamTrainingConfig
    initial : SamModel, optional
        Goes on from its weights (fine-tuning), with its architecture; it is not changed itself.
    on_epoch : callable, optional
        Called with a dict after every `steps_per_epoch` steps.

    Raises
    ------
    InputError
        Where no field holds a cell.
    """
    if not any(field.cells.any() for field in fields):
        raise InputError("the data set", "holds no labelled cell", "give fields with cells.tif")
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, head, architecture, retina = _start(config, initial)
    both = torch.nn.ModuleDict({"network": network, "head": head})
    both.to(device).train().requires_grad_(not config.freeze_encoder)
    if config.freeze_encoder:
        for module in (network.prompt_encoder, network.mask_decoder):
            module.requires_grad_(True)
    optimisers = _optimisers(network, head, config)
    average = {name: tensor.detach().clone() for name, tensor in both.state_dict().items()}
    history: list[dict[str, Any]] = []
    began = time.monotonic()
    losses: list[float] = []
    held_out = [
        draw_example(np.random.default_rng(index), validation, config, retina)
        for index in range(8 if validation else 0)
    ]
    step, progress = 0, 0.0
    examples = _examples(fields, config, retina)
    while progress < 1:
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = _rate(config, step, progress)
            optimiser.zero_grad(set_to_none=True)
        prompted = config.freeze_encoder or progress >= config.dense_share
        images = config.images_per_step * (1 if prompted else _DENSE_TO_PROMPTED)
        batch = [next(examples) for _ in range(images)]
        with torch.autocast(device.type, torch.bfloat16):
            loss = _loss(network, head, batch)[0] if prompted else _encoder_loss(network, head, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        if torch.isfinite(loss):
            for optimiser in optimisers:
                optimiser.step()
        _follow(average, both, min(0.995, (step + 1) / (step + 10)))
        losses.append(float(loss.detach()))
        step += 1
        minutes = (time.monotonic() - began) / 60
        progress = max(step / config.steps, minutes / config.max_minutes if config.max_minutes else 0.0)
        if step % config.steps_per_epoch == 0 or progress >= 1:
            record = {"step": step, "loss": float(np.mean(losses)), "seconds": minutes * 60}
            if held_out:
                record |= _held_out_scores(both, average, held_out)
            losses.clear()
            history.append(record)
            if on_epoch is not None:
                on_epoch(record)
    examples.close()
    both.load_state_dict(average)
    both.eval()
    return TrainedSam(network, head, architecture, history)


def _start(config: SamTrainingConfig, initial: SamModel | None) -> tuple[Any, CellHead, SamArchitecture | str, Retina]:
    """The network to train with its head, what it is built like, and how it sees."""
    if initial is None:
        network, architecture, context = build_small(config.architecture), config.architecture, None
    else:
        network, architecture, context = copy.deepcopy(initial.network), initial.architecture, initial.context
    head = new_head(network) if initial is None or initial.head is None else copy.deepcopy(initial.head)
    retina = Retina(
        network.image_encoder.img_size,
        network.prompt_encoder.image_embedding_size[0],
        context or config.architecture.context,
    )
    return network, head, architecture, retina


def _optimisers(
    network: Any, head: CellHead, config: SamTrainingConfig
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the transformers, AdamW for everything else."""
    matrices = [
        tensor
        for module in (network.image_encoder.blocks, network.mask_decoder.transformer)
        for name, tensor in module.named_parameters()
        if tensor.ndim == 2 and "rel_pos" not in name and tensor.requires_grad
    ]
    taken = {id(tensor) for tensor in matrices}
    others = [t for t in [*network.parameters(), *head.parameters()] if id(t) not in taken and t.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    return (
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=decay),
    )


def _rate(config: SamTrainingConfig, step: int, progress: float) -> float:
    return config.learning_rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * progress)) + 1e-6


def _follow(average: dict[str, torch.Tensor], network: torch.nn.Module, decay: float) -> None:
    for name, tensor in network.state_dict().items():
        average[name].lerp_(tensor.detach(), 1 - decay)


def _held_out_scores(
    both: torch.nn.ModuleDict, average: dict[str, torch.Tensor], batch: list[Example]
) -> dict[str, float]:
    current = {name: tensor.clone() for name, tensor in both.state_dict().items()}
    both.load_state_dict(average)
    with torch.no_grad():
        _, iou = _loss(both["network"], both["head"], batch)
        logits, depth = both["head"](*_embed(both["network"], batch))
        interior = _interiors(batch, logits.device)
        found, cells = logits > 0, interior > 0
        cell_iou = float((found & cells).sum() / (found | cells).sum().clamp(min=1))
        depth_error = float((depth - interior).abs()[cells].mean())
    both.load_state_dict(current)
    return {"iou": iou, "cell_iou": cell_iou, "depth_error": depth_error}


# -------------------------------------------------------------------------------------------------- examples


@dataclass(frozen=True, eq=False)
class Example:
    """A section to learn from.

    Attributes
    ----------
    picture : ndarray of uint8, shape (3, n, n)
    points : ndarray of float32, shape (p, 2)
        Prompts that are points: x, y.
    boxes : ndarray of float32, shape (b, 4)
        Prompts that are boxes: left, top, right, bottom.
    masks : ndarray of bool, shape (p + b, m, m)
        What the points and then the boxes ask for, at the decoder's resolution.
    interior : ndarray of float32, shape (n, n)
        Distance in pixels of every pixel to the border of its cell, 0 between cells.
    """

    picture: np.ndarray
    points: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    interior: np.ndarray


def _examples(
    fields: Sequence[LabelledField], config: SamTrainingConfig, retina: Retina
) -> Generator[Example, None, None]:
    """Examples without end, drawn by threads ahead of their use; each depends on the seed and its number alone."""
    workers = max(1, min(_MOST_WORKERS, (os.cpu_count() or 1) // 2))

    def draw(number: int) -> Example:
        return draw_example(np.random.default_rng((config.seed, number)), fields, config, retina)

    with ThreadPoolExecutor(workers, thread_name_prefix="examples") as pool:
        ahead = workers + _DENSE_TO_PROMPTED * config.images_per_step
        waiting: deque[Future[Example]] = deque(pool.submit(draw, number) for number in range(ahead))
        for number in itertools.count(ahead):
            yield waiting.popleft().result()
            waiting.append(pool.submit(draw, number))


def draw_example(
    rng: np.random.Generator, fields: Sequence[LabelledField], config: SamTrainingConfig, retina: Retina
) -> Example:
    """Draw a section of a random direction, magnified and with changed grey levels, and prompts on it."""
    size = retina.size
    while True:
        field = fields[int(rng.integers(len(fields)))]
        axis = int(rng.integers(3))
        volume, cells = np.moveaxis(field.image, axis, 0), np.moveaxis(field.cells, axis, 0)
        index = int(rng.integers(len(volume)))
        if not cells[index].any():
            continue
        picture = as_colours(volume, index, retina.context)
        if rng.random() < 0.5:
            picture = picture[..., ::-1]
        labels = cells[index].astype(np.float32)
        scale = np.exp(rng.uniform(*np.log(config.scale)))
        turn = _placement(rng, labels.shape, size, scale)
        seen = cv2.warpAffine(np.ones(labels.shape, np.uint8), turn, (size, size), flags=cv2.INTER_NEAREST) > 0
        picture = cv2.warpAffine(np.ascontiguousarray(picture), turn, (size, size), flags=cv2.INTER_LINEAR)
        labels = cv2.warpAffine(labels, turn, (size, size), flags=cv2.INTER_NEAREST).astype(np.int32)
        if not (labels > 0).sum() > 200:
            continue
        points, boxes, masks = _draw_prompts(rng, labels, config, retina.low)
        picture = _change_greys(rng, picture)
        picture[~seen] = PADDING
        interior = edt.edt(labels, black_border=False, parallel=1)
        return Example(np.ascontiguousarray(picture.transpose(2, 0, 1)), points, boxes, masks, interior)


def _placement(rng: np.random.Generator, shape: tuple[int, ...], size: int, scale: float) -> np.ndarray:
    # Flip, quarter turn and magnify, half of the time turn by any angle and stretch too; the section's corner lies at
    # the picture's corner as in inference, where the rest of a small section is padding, or the section overflows and a
    # random part is seen.
    rows, columns = shape
    flip = np.diag([rng.choice([-1.0, 1.0]), rng.choice([-1.0, 1.0])])
    quarter = np.array([[0.0, 1.0], [1.0, 0.0]]) if rng.random() < 0.5 else np.eye(2)
    linear = quarter @ flip * scale
    if rng.random() < _SKEWED_SHARE:
        angle, stretch = rng.uniform(-np.pi / 4, np.pi / 4), np.exp(rng.normal(0, _STRETCH))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = np.diag([stretch, 1 / stretch]) @ turn @ linear
    corners = np.array([[0, 0], [columns, 0], [0, rows], [columns, rows]]) @ linear.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    slack = np.maximum(high - low - size, 0)
    return np.column_stack([linear, -low - slack * rng.random(2)]).astype(np.float64)


def _draw_prompts(
    rng: np.random.Generator, labels: np.ndarray, config: SamTrainingConfig, low: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (p, 2), boxes (b, 4), and the masks (p + b, low, low) of all of them."""
    ids = np.unique(labels[labels > 0])
    points, boxes, asked = [], [], ([], [])
    for _ in range(config.prompts_per_image):
        if rng.random() < config.background_share and (labels == 0).any():
            chosen = 0
        else:
            chosen = int(ids[rng.integers(len(ids))])
        rows, columns = np.nonzero(labels == chosen)
        mask = np.zeros((low, low), bool) if chosen == 0 else _shrunk(labels == chosen, low)
        if chosen and rng.random() < config.box_share:
            boxes.append(_draw_box(rng, rows, columns))
            asked[1].append(mask)
        else:
            k = rng.integers(len(rows))
            points.append((columns[k] + 0.5, rows[k] + 0.5))
            asked[0].append(mask)
    masks = np.array([*asked[0], *asked[1]])
    return np.array(points, np.float32).reshape(-1, 2), np.array(boxes, np.float32).reshape(-1, 4), masks


def _shrunk(mask: np.ndarray, low: int) -> np.ndarray:
    """A mask at the decoder's resolution: where it fills half of a pixel. (Taking every second pixel would move it.)"""
    return cv2.resize(mask.astype(np.float32), (low, low), interpolation=cv2.INTER_AREA) >= 0.5


def _draw_box(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The box of some pixels (left, top, right, bottom), every side a little off."""
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
    lengths = np.tile(box[2:] - box[:2], 2)
    return box + rng.normal(0, _BOX_JITTER, 4).clip(-0.2, 0.2) * lengths


def _change_greys(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    g = picture.astype(np.float32)
    if rng.random() < 0.3:
        cv2.GaussianBlur(g, (0, 0), rng.uniform(0.4, 1.2), dst=g)
    if rng.random() < 0.2:
        g = 255 - g
    g = 255 * (np.clip(g, 0, 255) / 255) ** np.exp(rng.uniform(-0.5, 0.5))
    g = (g - g.mean()) * np.exp(rng.uniform(-0.5, 0.3)) + g.mean() + rng.uniform(-25, 25)
    if rng.random() < 0.4:
        coarse = rng.normal(size=(4, 4)).astype(np.float32) * rng.uniform(2, 22)
        g += cv2.resize(coarse, g.shape[1::-1], interpolation=cv2.INTER_CUBIC)[..., None]
    if rng.random() < 0.7:
        g += rng.normal(size=g.shape).astype(np.float32) * rng.uniform(1, 20)
    return np.clip(g, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------ loss


def _embed(network: Any, batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the examples, and what the image encoder saw."""
    pictures = torch.from_numpy(np.stack([example.picture for example in batch])).to(network.device).float()
    pixels = (pictures - network.pixel_mean) / network.pixel_std
    return network.image_encoder(pixels), pixels


def _interiors(batch: list[Example], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.stack([example.interior for example in batch])).to(device)


def _encoder_loss(network: Any, head: Any, batch: list[Example]) -> torch.Tensor:
    logits, depth = head(*_embed(network, batch))
    return head_loss(logits, depth, _interiors(batch, network.device))


def _loss(network: Any, head: Any, batch: list[Example]) -> tuple[torch.Tensor, float]:
    device, decoder = network.device, network.mask_decoder
    embeddings, pixels = _embed(network, batch)
    sparse, dense = _prompts(network, batch)
    positions = network.prompt_encoder.get_dense_pe()

    def answer(embedding: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return decoder.predict_masks(embedding[None], positions, sparse, dense)

    answered = torch.func.vmap(answer)(embeddings.detach(), sparse, dense)
    logits, quality = (one.float().flatten(0, 1) for one in answered)
    target = torch.from_numpy(np.concatenate([example.masks for example in batch])).to(device).float()
    prompted, iou = _mask_loss(logits, quality, target[:, None].expand(-1, logits.shape[1], -1, -1))
    logits, depth = head(embeddings, pixels)
    return prompted + head_loss(logits, depth, _interiors(batch, device)), iou


def _prompts(network: Any, batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse and dense embeddings of the points and then the boxes of every example; either is two tokens."""
    device = network.device
    points = torch.from_numpy(np.concatenate([example.points for example in batch])).to(device)
    boxes = torch.from_numpy(np.concatenate([example.boxes for example in batch])).to(device)
    labels = torch.ones(len(points), 1, dtype=torch.int, device=device)
    pointed, boxed = (
        network.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None),
        network.prompt_encoder(points=None, boxes=boxes, masks=None),
    )
    counts = [len(example.points) for example in batch], [len(example.boxes) for example in batch]
    image = np.concatenate([np.repeat(np.arange(len(batch)), of_kind) for of_kind in counts])
    order = torch.from_numpy(np.argsort(image, kind="stable")).to(device)
    sparse, dense = (torch.cat(parts)[order] for parts in zip(pointed, boxed, strict=True))
    return sparse.unflatten(0, (len(batch), -1)), dense.unflatten(0, (len(batch), -1))


def _mask_loss(logits: torch.Tensor, quality: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, float]:
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = torch.sigmoid(logits)
    certainty = probability * target + (1 - probability) * (1 - target)
    weight = 0.25 * target + 0.75 * (1 - target)
    focal = (weight * (1 - certainty) ** 2 * entropy).mean(dim=(1, 2, 3))
    # A share of plain entropy keeps the gradient alive on the last few pixels of a boundary, which focal loss gives up.
    plain = entropy.mean(dim=(1, 2, 3))
    overlap = (probability * target).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=(2, 3)) + target.sum(dim=(2, 3)) + 1)
    filled = (target[:, 0].sum(dim=(1, 2)) > 0).float()
    with torch.no_grad():
        mask = logits > 0
        both = (mask & (target > 0)).sum(dim=(2, 3)).float()
        either = (mask | (target > 0)).sum(dim=(2, 3)).float()
        iou = torch.where(target.sum(dim=(2, 3)) > 0, both / either.clamp(min=1), torch.zeros_like(both))
    loss = 20 * focal + plain + filled * dice.mean(dim=1) + ((quality - iou) ** 2).mean(dim=1)
    return loss.mean(), float((iou[:, 0] * filled).sum() / filled.sum().clamp(min=1))
