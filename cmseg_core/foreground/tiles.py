"""Sections as a Segment Anything model sees them: in square tiles that overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cmseg_core.foreground.encoder import embed_images
from cmseg_core.foreground.sam import PADDING, SamModel
from cmseg_core.halving import in_halves

_OFFICIAL_TILE = 256
"""Edge in working pixels of a tile that an official model sees magnified to its 1024 pixels."""
_PIXELS_AT_ONCE = 2**18
"""Pixels of the tiles that the image encoder takes together."""


@dataclass(frozen=True)
class Place:
    """Where a tile lies in its section, in pixels."""

    top: int
    left: int
    rows: int
    columns: int

    def inner(self, shape: tuple[int, int]) -> tuple[bool, bool, bool, bool]:
        """Whether its top, left, bottom and right lie inside a section."""
        bottom, right = self.top + self.rows < shape[0], self.left + self.columns < shape[1]
        return self.top > 0, self.left > 0, bottom, right


class TileEncoder:
    """Shows tiles of sections to the image encoder.

    Parameters
    ----------
    sam : SamModel
    dtype : torch.dtype, optional
        Of the computation; by default bfloat16 where the processor, or the GPU, computes with it.
    shared : float
        Least share of its edge by which a tile overlaps the next one.

    Attributes
    ----------
    edge : int
        Pixels of a section along each side of a tile.
    """

    def __init__(self, sam: SamModel, dtype: torch.dtype | None = None, *, shared: float = 0.5) -> None:
        self.sam, self._shared = sam, shared
        self.dtype = dtype or (torch.bfloat16 if has_bfloat16(sam.device) else torch.float32)
        self.edge = _OFFICIAL_TILE if isinstance(sam.architecture, str) else sam.image_size

    def embed(self, pictures: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[int, Place, torch.Tensor, torch.Tensor]]:
        """Number of the picture, place, pixels (1, 3, edge, edge) as the network takes them and embedding
        (1, channels, rows, columns) of every tile of some sections.

        Parameters
        ----------
        pictures : sequence of ndarray of uint8, shape (rows, columns, 3)
            All of one size.
        """
        rows, columns = pictures[0].shape[:2]
        edge = self.edge
        places = [
            Place(top, left, min(edge, rows), min(edge, columns))
            for top in tile_starts(rows, edge, self._shared)
            for left in tile_starts(columns, edge, self._shared)
        ]
        wanted = [(number, place) for number in range(len(pictures)) for place in places]
        at_once = max(1, _PIXELS_AT_ONCE // self.sam.image_size**2)
        for start in range(0, len(wanted), at_once):
            some = wanted[start : start + at_once]
            batch = torch.stack([self._input(pictures[number], place) for number, place in some])
            with torch.autocast(self.sam.device.type, self.dtype, enabled=self.dtype != torch.float32):
                embeddings = torch.cat(list(in_halves(partial(embed_images, self.sam.network.image_encoder), batch)))
            for (number, place), pixels, embedding in zip(some, batch, embeddings, strict=True):
                yield number, place, pixels[None], embedding[None]

    def _input(self, picture: NDArray[np.uint8], place: Place) -> torch.Tensor:
        size, network = self.sam.image_size, self.sam.network
        tile = picture[place.top : place.top + place.rows, place.left : place.left + place.columns]
        if size != self.edge:
            scale = size / self.edge
            shape = (round(tile.shape[1] * scale), round(tile.shape[0] * scale))
            tile = cv2.resize(tile, shape, interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
        square = np.full((size, size, 3), PADDING, np.uint8)
        square[: tile.shape[0], : tile.shape[1]] = tile
        pixels = torch.from_numpy(square).to(self.sam.device).permute(2, 0, 1).float()
        return (pixels - network.pixel_mean) / network.pixel_std


def tile_starts(length: int, edge: int, shared: float = 0.5) -> list[int]:
    """First pixels of the tiles that cover a length, evenly spaced, with at least that share of a tile in common."""
    if length <= edge:
        return [0]
    count = int(np.ceil((length - edge) / (edge * (1 - shared)))) + 1
    return [round(i * (length - edge) / (count - 1)) for i in range(count)]


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes with bfloat16 rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
