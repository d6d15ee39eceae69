"""Cells of a section read by the head, with nothing asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cmseg_core.foreground.sam import SamModel
from cmseg_core.foreground.tiles import Place, TileEncoder

_SHARED = 0.3
"""Share of its edge by which a tile overlaps the next one: most of a cell. A mask must lie in one tile and asks for
half; a pixel's depth only for what is near."""


class HeadReader:
    """Reads sections with the head of a model that cmseg trained.

    Where tiles overlap, each counts the more the further inside it a pixel lies, so that no seam shows.

    Parameters
    ----------
    sam : SamModel
        With a head.
    dtype : torch.dtype, optional
        As for :class:`~cmseg_core.foreground.tiles.TileEncoder`.
    """

    def __init__(self, sam: SamModel, dtype: torch.dtype | None = None) -> None:
        if sam.head is None:
            raise ValueError("the model has no head")
        self.sam, self.head, self.encoder = sam, sam.head, TileEncoder(sam, dtype, shared=_SHARED)

    @torch.inference_mode()
    def read(self, pictures: Sequence[NDArray[np.uint8]]) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        """Probability of a cell (0 to 255) and depth in pixels inside it.

        Parameters
        ----------
        pictures : sequence of ndarray of uint8, shape (rows, columns, 3)
            Sections, all of one size.
        """
        shape = pictures[0].shape[:2]
        sums = np.zeros((len(pictures), 3, *shape), np.float32)
        for number, place, pixels, embedding in self.encoder.embed(pictures):
            weight = _hat(place, shape)
            probability, depth = self._tile(place, pixels, embedding)
            rows, columns = place.rows, place.columns
            window = sums[number, :, place.top : place.top + rows, place.left : place.left + columns]
            window += weight * np.stack([probability, depth, np.ones_like(depth)])
        probability, depth = sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]
        return list(zip((255 * probability).astype(np.uint8), np.maximum(depth, 0), strict=True))

    def _tile(
        self, place: Place, pixels: torch.Tensor, embedding: torch.Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        dtype = self.encoder.dtype
        with torch.autocast(self.sam.device.type, dtype, enabled=dtype != torch.float32):
            logits, depth = self.head(embedding if dtype != torch.float32 else embedding.float(), pixels)
        probability = torch.sigmoid(logits)
        edge, size = self.encoder.edge, self.sam.image_size
        if edge != size:
            probability, depth = (
                F.interpolate(values[None], (edge, edge), mode="bilinear")[0] for values in (probability, depth)
            )
            depth = depth * (edge / size)
        first, second = (values[0, : place.rows, : place.columns].cpu().numpy() for values in (probability, depth))
        return first, second


def _hat(place: Place, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Weight of each pixel of a tile: its distance to the nearest side of the tile that lies inside the section."""
    top, left, bottom, right = place.inner(shape)
    lines = []
    for length, before, after in ((place.rows, top, bottom), (place.columns, left, right)):
        place_in = np.arange(length, dtype=np.float32) + 0.5
        rise = place_in if before else np.full(length, np.inf, np.float32)
        fall = length - place_in if after else np.full(length, np.inf, np.float32)
        lines.append(np.minimum(np.minimum(rise, fall), length))
    return np.minimum(lines[0][:, None], lines[1][None])
