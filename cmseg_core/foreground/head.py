"""Cells read at every pixel from the image embedding and the image itself, with nothing asked.

Micro-sam gives Segment Anything such a head for automatic segmentation (Archit et al., "Segment Anything for
microscopy", Nature Methods 2025): beside the mask decoder, which answers prompts, it reads off whether a pixel lies in
a cell and how far inside. As in UNETR, which that head follows, the image comes in once more at the end: a place of the
embedding stands for many pixels, and where two cells touch one pixel counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_DEPTH_SCALE = 20.0
"""Pixels; brings the distances inside a cell to about 0..1."""
_COARSE = 8
"""Channels that are read from the embedding; the first two are a first guess."""
_FINE = 32
"""Channels of the convolutions that see the image."""
_NEAR = 6.0
"""Pixels inside a cell at which an error of the depth counts half of what it does where cells end."""


class CellHead(torch.nn.Module):
    """Convolutions over the image embedding, and over what they say beside the image, at half its resolution.

    Parameters
    ----------
    channels : int
        Of the image embedding.
    patch : int
        Pixels of the network's input along each side of a place of the embedding; even.
    """

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            torch.nn.GELU(),
            torch.nn.Conv2d(2 * channels, _COARSE * patch**2, kernel_size=1),
        )
        last = torch.nn.Conv2d(_FINE, 2 * 4, kernel_size=1)
        self.refinement = torch.nn.Sequential(
            torch.nn.Conv2d(4 * (3 + _COARSE), _FINE, kernel_size=3, padding=1),
            torch.nn.GELU(),
            torch.nn.Conv2d(_FINE, _FINE, kernel_size=3, padding=1),
            torch.nn.GELU(),
            torch.nn.Conv2d(_FINE, _FINE, kernel_size=3, padding=2, dilation=2),
            torch.nn.GELU(),
            last,
        )
        for tensor in last.parameters():  # starts from what the embedding alone says
            torch.nn.init.zeros_(tensor)

    def forward(self, embeddings: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Read image embeddings (n, channels, rows, columns).

        Parameters
        ----------
        embeddings : tensor, shape (n, channels, rows, columns)
        pixels : tensor, shape (n, 3, patch * rows, patch * columns)
            What the image encoder saw.

        Returns
        -------
        logits : tensor, shape (n, patch * rows, patch * columns)
            Above 0 in cells.
        depth : tensor, of the same shape
            Distance in pixels of the input to where the pixel's own cell ends; 0 outside cells.
        """
        coarse = F.pixel_shuffle(self.layers(embeddings), self.patch)
        beside = F.pixel_unshuffle(torch.cat([pixels, coarse], dim=1), 2)
        read = (coarse[:, :2] + F.pixel_shuffle(self.refinement(beside), 2)).float()
        return read[:, 0], read[:, 1] * _DEPTH_SCALE


def head_loss(logits: torch.Tensor, depth: torch.Tensor, interior: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the cells, and the absolute error of the depth, most of all where cells end or touch.

    Parameters
    ----------
    logits, depth : tensor, shape (n, rows, columns)
        From :class:`CellHead`.
    interior : tensor, of the same shape
        True depth in pixels.
    """
    cell = F.binary_cross_entropy_with_logits(logits, (interior > 0).float())
    error = F.smooth_l1_loss(depth / _DEPTH_SCALE, interior / _DEPTH_SCALE, beta=0.05, reduction="none")
    return cell + (error / (1 + interior / _NEAR)).mean() * 4
