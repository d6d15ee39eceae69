"""Segment Anything's image encoder, with its attention rearranged.

The layers that attend over all tokens of an image form a table of (heads, tokens, tokens) several times over: 800 MB
each time for 1024 x 1024 pixels in float32. Here every layer takes a few rows of queries at a time, so that the table
stays in the caches. Layers that attend within windows pad the image until the windows fit: all that is known of the
padding are biases, so it is neither projected nor attended from. The numbers are the same to rounding.
"""

from __future__ import annotations

from typing import Any

import torch

_SCORES_AT_ONCE = 2**21
"""Entries of the table that are formed together."""


def embed_images(encoder: Any, images: torch.Tensor) -> torch.Tensor:
    """Embeddings of normalised images.

    Parameters
    ----------
    encoder : segment_anything.modeling.ImageEncoderViT
    images : Tensor, shape (n, 3, size, size)

    Returns
    -------
    Tensor, shape (n, channels, rows, columns)
    """
    x = encoder.patch_embed(images)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    x = x.contiguous()  # channels last in memory as well, or every norm and every sum would turn it round
    for block in encoder.blocks:
        x += _attend(block.attn, block.norm1(x), block.window_size)
        x += block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def _attend(attention: Any, x: torch.Tensor, window: int) -> torch.Tensor:
    """Attention over tokens (n, rows, columns, channels), within square windows or, where `window` is 0, over all."""
    images, height, width, channels = x.shape
    rows, columns = (window, window) if window else (height, width)
    down_count, across_count = -(-height // rows), -(-width // columns)
    heads, depth = attention.num_heads, channels // attention.num_heads
    qkv = attention.qkv(x)
    padded = (down_count * rows, across_count * columns)
    if padded != (height, width):
        # The padding is zeros after the norm, of which a projection leaves its bias.
        whole = attention.qkv.bias.to(qkv.dtype).expand(images, *padded, -1).contiguous()
        whole[:, :height, :width] = qkv
        qkv = whole
    tables = images * down_count * across_count * heads
    split = qkv.view(images, down_count, rows, across_count, columns, 3, heads, depth)
    q, k, v = split.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, tables, rows * columns, depth).unbind(0)
    keys = (k * attention.scale).transpose(1, 2).contiguous()
    # What the distance in rows, and in columns, adds to the scores.
    down = _skewed(q, attention.rel_pos_h, rows, columns, along_rows=True)
    across = _skewed(q, attention.rel_pos_w, rows, columns, along_rows=False)
    out = torch.empty_like(q)
    at_once = max(1, _SCORES_AT_ONCE // (rows * columns) ** 2)
    step = max(1, _SCORES_AT_ONCE // (columns * rows * columns))
    with torch.autocast(x.device.type, enabled=False):  # which would copy every table to float32 and back
        for first in range(0, tables, at_once):
            some = slice(first, first + at_once)
            for start in range(0, rows, step):
                scores = down[some, start : start + step, :, :, None] + across[some, start : start + step, :, None, :]
                scores = scores.flatten(1, 2).flatten(2)
                piece = slice(start * columns, (start + step) * columns)
                scores.baddbmm_(q[some, piece], keys[some])
                out[some, piece] = torch.bmm(scores.softmax(dim=-1), v[some])
    joined = out.view(images, down_count, across_count, heads, rows, columns, depth).permute(0, 1, 4, 2, 5, 3, 6)
    # Contiguous, or the projection becomes a product of many small matrices.
    return attention.proj(joined.reshape(images, *padded, channels)[:, :height, :width].contiguous())


def _skewed(q: torch.Tensor, embedding: torch.Tensor, rows: int, columns: int, *, along_rows: bool) -> torch.Tensor:
    """Products of the queries (tables, rows * columns, depth) with the embedding of their distance to each row, or to
    each column: (tables, rows, columns, rows or columns).

    All distances are multiplied; the ones that a query needs lie side by side, one place further for each step of the
    query, so that they are a view and nothing is gathered (Huang et al., "Music Transformer", 2019).
    """
    size = rows if along_rows else columns
    every = 2 * size - 1
    products = q @ embedding.flip(0).to(q.dtype).T
    steps = [rows * columns * every, columns * every, every, 1]
    steps[1 if along_rows else 2] -= 1
    return products.as_strided((len(q), rows, columns, size), steps, size - 1)
