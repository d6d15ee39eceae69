"""Masks of a section from prompts.

The procedure is that of segment_anything's ``SamAutomaticMaskGenerator`` (Kirillov et al. 2023, appendix B): ask the
model at points, keep masks that it predicts to be good and that are stable, drop near-duplicates by their boxes. It
differs in where the work is done. Every point is asked in one tile only, the one that shows most round it; quality is
judged before a mask is drawn, stability and near-copies at the decoder's resolution, and only what survives is brought
to the section's, where duplicates are judged; the arithmetic is bfloat16 where the processor has it.
``benchmarks/bench_sam.py`` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cmseg_core.foreground.decoder import PromptDecoder, SeenImage
from cmseg_core.foreground.masks import Masks, boxes_of, distinct_boxes
from cmseg_core.foreground.sam import SamModel
from cmseg_core.foreground.tiles import Place, TileEncoder
from cmseg_core.schema import ForegroundConfig

_TOKENS_AT_ONCE = 40_000
"""Image tokens, all prompts of a batch together; it bounds the memory."""
_STABILITY_OFFSET = 1.0
_COPIES = 0.85
"""IoU of boxes at the decoder's resolution beyond which the lesser mask is not worth bringing to the section's."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """What a model is asked.

    Attributes
    ----------
    points : ndarray of float64, shape (n, 2)
        x, y in pixels of the section.
    boxes : ndarray of float64, shape (m, 4)
        Left, top, right, bottom.
    """

    points: NDArray[np.float64]
    boxes: NDArray[np.float64]

    @classmethod
    def at(cls, points: NDArray[np.float64]) -> Prompts:
        """Points alone."""
        return cls(points, np.zeros((0, 4)))

    def __len__(self) -> int:
        return len(self.points) + len(self.boxes)


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of a section, as the model has seen it."""

    place: Place
    image: SeenImage


@dataclass(frozen=True, eq=False)
class Section:
    """A section that the model has seen, in tiles that overlap by half.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns.
    tiles : list of Tile
    """

    shape: tuple[int, int]
    tiles: list[Tile]

    def tile_of(self, points: NDArray[np.float64]) -> NDArray[np.intp]:
        """Number of the tile that shows most round each point (x, y)."""
        margins = [_margin(points, tile.place, tile.place.inner(self.shape)) for tile in self.tiles]
        return np.argmax(margins, axis=0)

    def cut(self, masks: Masks, tile: Tile) -> NDArray[np.bool_]:
        """Which masks of a tile reach its border inside the section, where another tile may see them whole."""
        first, last = masks.boxes[:, :2], masks.boxes[:, :2] + masks.boxes[:, 2:]
        place = tile.place
        top, left, bottom, right = place.inner(self.shape)
        inner = np.array([top, left]), np.array([bottom, right])
        at_first, at_last = inner[0] & (first <= 1), inner[1] & (last >= np.array([place.rows, place.columns]) - 1)
        return np.atleast_1d(np.any(at_first | at_last, axis=1))


class MaskGenerator:
    """Asks a Segment Anything model about sections.

    Parameters
    ----------
    sam : SamModel
    config : ForegroundConfig
    dtype : torch.dtype, optional
        Of the computation; by default bfloat16 where the processor, or the GPU, computes with it.
    """

    def __init__(self, sam: SamModel, config: ForegroundConfig, dtype: torch.dtype | None = None) -> None:
        self.sam, self.config = sam, config
        self.encoder = TileEncoder(sam, dtype)
        with torch.inference_mode():
            self.decoder = PromptDecoder(sam, self.encoder.dtype)
        self.edge = self.encoder.edge

    @torch.inference_mode()
    def look(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Section]:
        """Show sections (rows, columns, 3), all of one size, to the image encoder."""
        rows, columns = pictures[0].shape[:2]
        sections = [Section((rows, columns), []) for _ in pictures]
        for number, place, _, embedding in self.encoder.embed(pictures):
            sections[number].tiles.append(Tile(place, self.decoder.see(embedding)))
        return sections

    def ask(self, section: Section, prompts: Prompts) -> Masks:
        """Masks that the model gives for prompts: good ones, distinct ones, the best first."""
        found = Masks.none(section.shape)
        points, boxes = (section.tile_of(centres) for centres in (prompts.points, _centres(prompts.boxes)))
        for number, tile in enumerate(section.tiles):
            mine = Prompts(prompts.points[points == number], prompts.boxes[boxes == number])
            if len(mine):
                found = found.and_those(self._ask_tile(section, tile, mine))
        return found.distinct(self.config.box_nms_thresh)

    @torch.inference_mode()
    def _ask_tile(self, section: Section, tile: Tile, prompts: Prompts) -> Masks:
        corner, scale = np.array([tile.place.left, tile.place.top]), self.sam.image_size / self.edge
        kinds = ((prompts.points - corner) * scale, (prompts.boxes - np.tile(corner, 2)) * scale)
        embedded = [
            self.decoder.embed(*(self._floats(kind) if n == which else None for n in range(2)))
            for which, kind in enumerate(kinds)
            if len(kind)
        ]
        tokens = torch.cat(embedded)
        at_once = max(1, _TOKENS_AT_ONCE // len(tile.image.tokens))
        drawn: list[torch.Tensor] = []
        good: list[torch.Tensor] = []
        for start in range(0, len(tokens), at_once):
            quality, draw = self.decoder.decode(tile.image, tokens[start : start + at_once])
            prompt, mask = torch.nonzero(quality >= self.config.pred_iou_thresh, as_tuple=True)
            low = draw(prompt, mask)
            stable = stability(low) >= self.config.stability_score_thresh
            drawn.append(low[stable])
            good.append(quality[prompt, mask][stable])
        masks = self._uncopied(tile, torch.cat(drawn), torch.cat(good))
        return masks.take(np.flatnonzero(~section.cut(masks, tile))).moved(
            tile.place.top, tile.place.left, section.shape
        )

    def _uncopied(self, tile: Tile, low: torch.Tensor, quality: torch.Tensor) -> Masks:
        """Masks of a tile at the section's resolution, from those at the decoder's, which cover the padded square; the
        lesser ones of near-copies are left out."""
        rows, columns = (max(1, round(low.shape[1] * n / self.edge)) for n in (tile.place.rows, tile.place.columns))
        boxes = boxes_of((low[:, :rows, :columns] > 0).cpu().numpy())
        kept = distinct_boxes(boxes, quality.cpu().numpy(), max(_COPIES, self.config.box_nms_thresh))
        low, quality = low[kept], quality[kept]
        if low.shape[1] != self.edge:
            low = F.interpolate(low[:, None], (self.edge, self.edge), mode="bilinear")[:, 0]
        return Masks.of(low[:, : tile.place.rows, : tile.place.columns].cpu().numpy(), quality.cpu().numpy())

    def _floats(self, values: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.sam.device, torch.float32)


def point_grid(shape: tuple[int, int], spacing: float) -> NDArray[np.float64]:
    """Points (x, y) of a square grid over a section, about `spacing` pixels apart."""
    y, x = ((np.arange(count) + 0.5) * n / count for n in shape for count in [max(1, round(n / spacing))])
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def stability(logits: torch.Tensor) -> torch.Tensor:
    """IoU of each mask (n, rows, columns) at a raised and at a lowered threshold."""
    raised = (logits > _STABILITY_OFFSET).sum(dim=(1, 2))
    lowered = (logits > -_STABILITY_OFFSET).sum(dim=(1, 2))
    return raised / lowered.clamp(min=1)


def _centres(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _margin(points: NDArray[np.float64], tile: Place, inner: tuple[bool, bool, bool, bool]) -> NDArray[np.float64]:
    """Distance of points to the border of a tile inside the section; negative outside the tile."""
    x, y = points.T
    far = float(tile.rows + tile.columns)
    sides = (y - tile.top, x - tile.left, tile.top + tile.rows - y, tile.left + tile.columns - x)
    distances = [side if inside else np.where(side < 0, side, far) for side, inside in zip(sides, inner, strict=True)]
    return np.min(distances, axis=0)
