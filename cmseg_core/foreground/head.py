"""Cells read at every pixel straight from the image embedding, with nothing asked.

Micro-sam gives Segment Anything such a head for automatic segmentation (Archit et al., "Segment Anything for
microscopy", Nature Methods 2025): beside the mask decoder, which answers prompts, it reads off whether a pixel lies in
a cell and how far inside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_DEPTH_SCALE = 20.0
"""Pixels; brings the distances inside a cell to about 0..1."""


class CellHead(torch.nn.Module):
    """Two convolutions over the image embedding.

    Parameters
    ----------
    channels : int
        Of the image embedding.
    patch : int
        Pixels of the network's input along each side of a place of the embedding.
    """

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            torch.nn.GELU(),
            torch.nn.Conv2d(2 * channels, 2 * patch**2, kernel_size=1),
        )

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Read image embeddings (n, channels, rows, columns).

        Returns
        -------
        logits : tensor, shape (n, patch * rows, patch * columns)
            Above 0 in cells.
        depth : tensor, of the same shape
            Distance in pixels of the input to where the pixel's own cell ends; 0 outside cells.
        """
        read = F.pixel_shuffle(self.layers(embeddings).float(), self.patch)
        return read[:, 0], read[:, 1] * _DEPTH_SCALE


def head_loss(logits: torch.Tensor, depth: torch.Tensor, interior: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the cells, and the absolute error of the depth, rounded off near 0.

    Parameters
    ----------
    logits, depth : tensor, shape (n, rows, columns)
        From :class:`CellHead`.
    interior : tensor, of the same shape
        True depth in pixels.
    """
    cell = F.binary_cross_entropy_with_logits(logits, (interior > 0).float())
    return cell + F.smooth_l1_loss(depth / _DEPTH_SCALE, interior / _DEPTH_SCALE, beta=0.2) * 2
