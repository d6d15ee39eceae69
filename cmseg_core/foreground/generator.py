"""Masks of one section from a grid of points.

The same procedure as segment_anything's ``SamAutomaticMaskGenerator`` (Kirillov et al. 2023, appendix B): ask the model
at every point of a grid, keep masks that it predicts to be good and that are stable, drop near-duplicates by their
boxes. It differs in where the work is done: quality, stability and duplicates are judged at the decoder's resolution,
and only survivors are brought to the section's. ``tests/foreground`` compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from cmseg_core.foreground.sam import PADDING, SamModel
from cmseg_core.schema import ForegroundConfig

_PROMPTS_PER_BATCH = 64
_OFFICIAL_TILE = 256
"""Edge in working pixels of a tile that an official model sees magnified to its 1024 pixels."""
_STABILITY_OFFSET = 1.0


@dataclass(frozen=True, eq=False)
class Masks:
    """Candidates of one tile or section.

    Attributes
    ----------
    logits : ndarray of float32, shape (n, rows, columns)
        Above 0 inside a mask.
    quality : ndarray of float32, shape (n,)
        IoU that the model predicts of each mask.
    boxes : ndarray of float32, shape (n, 4)
        First row, first column, rows, columns.
    """

    logits: np.ndarray
    quality: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.quality)

    def take(self, chosen: np.ndarray) -> Masks:
        """Some of the masks."""
        return Masks(self.logits[chosen], self.quality[chosen], self.boxes[chosen])


def generate_masks(sam: SamModel, picture: np.ndarray, config: ForegroundConfig) -> Masks:
    """Masks of one section.

    Sections larger than a tile are covered by tiles that overlap by half; a mask cut by the inner edge of a tile is
    left to the neighbouring tile, which sees it whole.

    Parameters
    ----------
    sam : SamModel
    picture : ndarray of uint8, shape (rows, columns, 3)
    config : ForegroundConfig

    Returns
    -------
    Masks
        At the section's resolution, best first, near-duplicates dropped.
    """
    rows, columns = picture.shape[:2]
    edge = sam.image_size if sam.name == "small" else _OFFICIAL_TILE
    found: list[Masks] = []
    for top in _starts(rows, edge):
        for left in _starts(columns, edge):
            tile = picture[top : top + edge, left : left + edge]
            masks = _tile_masks(sam, tile, edge, config)
            inner = (top > 0, left > 0, top + edge < rows, left + edge < columns)
            masks = masks.take(np.flatnonzero(~_cut(masks, tile.shape, inner)))
            if len(masks):
                found.append(_placed(masks, (rows, columns), top, left))
    if not found:
        return Masks(np.zeros((0, rows, columns), np.float32), np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
    every = Masks(
        *(np.concatenate(parts) for parts in zip(*((m.logits, m.quality, m.boxes) for m in found), strict=True))
    )
    return every.take(_distinct(every.boxes, every.quality, config.box_nms_thresh))


def point_grid(rows: int, columns: int, edge: int, points_per_side: int) -> np.ndarray:
    """Centres (x, y) of a grid with `points_per_side` points along `edge`, over a tile that may be smaller."""
    down, across = (max(1, round(points_per_side * n / edge)) for n in (rows, columns))
    y = (np.arange(down) + 0.5) * rows / down
    x = (np.arange(across) + 0.5) * columns / across
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _starts(length: int, edge: int) -> list[int]:
    if length <= edge:
        return [0]
    count = int(np.ceil((length - edge) / (edge / 2))) + 1
    return [round(i * (length - edge) / (count - 1)) for i in range(count)]


@torch.inference_mode()
def _tile_masks(sam: SamModel, tile: np.ndarray, edge: int, config: ForegroundConfig) -> Masks:
    rows, columns = tile.shape[:2]
    scale = sam.image_size / edge
    network = sam.network
    embedding = network.image_encoder(_network_input(sam, tile, scale))
    points = point_grid(rows, columns, edge, config.points_per_side) * scale
    logits, quality = [], []
    for low, predicted in _decode(sam, embedding, points):
        good = predicted >= config.pred_iou_thresh
        low, predicted = low[good], predicted[good]
        stable = _stability(low) >= config.stability_score_thresh
        logits.append(low[stable])
        quality.append(predicted[stable])
    low, predicted = torch.cat(logits), torch.cat(quality)
    # Low-resolution masks cover the padded square; the section is its corner.
    inside = low[:, : max(1, round(low.shape[1] * rows / edge)), : max(1, round(low.shape[2] * columns / edge))]
    boxes = _boxes((inside > 0).cpu().numpy())
    keep = _distinct(boxes, predicted.cpu().numpy(), config.box_nms_thresh)
    survivors = F.interpolate(low[torch.from_numpy(keep).to(low.device)][:, None], (edge, edge), mode="bilinear")
    full = survivors[:, 0, :rows, :columns].float().cpu().numpy()
    boxes = _boxes(full > 0)
    seen = boxes[:, 2] > 0
    return Masks(full[seen], predicted.cpu().numpy()[keep][seen], boxes[seen])


def _network_input(sam: SamModel, tile: np.ndarray, scale: float) -> torch.Tensor:
    if scale != 1:
        size = (round(tile.shape[1] * scale), round(tile.shape[0] * scale))
        tile = cv2.resize(tile, size, interpolation=cv2.INTER_LINEAR)
    square = np.full((sam.image_size, sam.image_size, 3), PADDING, np.uint8)
    square[: tile.shape[0], : tile.shape[1]] = tile
    pixels = torch.from_numpy(square).to(sam.device).permute(2, 0, 1).float()
    return ((pixels - sam.network.pixel_mean) / sam.network.pixel_std)[None]


def _decode(sam: SamModel, embedding: torch.Tensor, points: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    # A model trained on cells gives the whole cell as its single mask; the official ones whole, part, part of a part.
    tokens = slice(0, 1) if sam.whole_cells else slice(1, None)
    position = sam.network.prompt_encoder.get_dense_pe()
    for start in range(0, len(points), _PROMPTS_PER_BATCH):
        batch = torch.from_numpy(points[start : start + _PROMPTS_PER_BATCH]).to(sam.device).float()[:, None]
        labels = torch.ones(batch.shape[:2], dtype=torch.int, device=sam.device)
        sparse, dense = sam.network.prompt_encoder(points=(batch, labels), boxes=None, masks=None)
        logits, quality = sam.network.mask_decoder.predict_masks(embedding, position, sparse, dense)
        yield logits[:, tokens].flatten(0, 1), quality[:, tokens].flatten()


def _stability(logits: torch.Tensor) -> torch.Tensor:
    raised = (logits > _STABILITY_OFFSET).sum(dim=(1, 2))
    lowered = (logits > -_STABILITY_OFFSET).sum(dim=(1, 2))
    return raised / lowered.clamp(min=1)


def _boxes(masks: np.ndarray) -> np.ndarray:
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            box[:] = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    return boxes


def _distinct(boxes: np.ndarray, quality: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of the boxes that survive non-maximum suppression, best first."""
    if not len(boxes):
        return np.zeros(0, np.int64)
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), quality.tolist(), 0.0, threshold)
    return np.asarray(kept, dtype=np.int64).ravel()


def _cut(masks: Masks, shape: tuple[int, ...], inner: tuple[bool, bool, bool, bool]) -> np.ndarray:
    top, left, height, width = masks.boxes.T
    return (
        (inner[0] & (top <= 1))
        | (inner[1] & (left <= 1))
        | (inner[2] & (top + height >= shape[0] - 1))
        | (inner[3] & (left + width >= shape[1] - 1))
    )


def _placed(masks: Masks, shape: tuple[int, int], top: int, left: int) -> Masks:
    logits = np.full((len(masks), *shape), -20.0, np.float32)
    logits[:, top : top + masks.logits.shape[1], left : left + masks.logits.shape[2]] = masks.logits
    return Masks(logits, masks.quality, masks.boxes + np.array([top, left, 0, 0], np.float32))
