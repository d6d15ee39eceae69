"""Segment Anything's image encoder, with the attention over whole images in pieces.

The layers that attend over all tokens of an image form a table of (heads, tokens, tokens) several times over: 800 MB
each time for 1024 x 1024 pixels in float32. Here they take a few rows of queries at a time, so that the table stays in
the caches; the numbers are the same to rounding. All other layers are segment_anything's own.
"""

from __future__ import annotations

from typing import Any

import torch

_SCORES_AT_ONCE = 2**23
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
    for block in encoder.blocks:
        if block.window_size > 0:
            x = block(x)
        else:
            x = x + _attend(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def _attend(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """What ``attention(x)`` gives for tokens (n, rows, columns, channels), a few rows of queries at a time."""
    from segment_anything.modeling.image_encoder import get_rel_pos

    images, rows, columns, channels = x.shape
    heads, depth = images * attention.num_heads, channels // attention.num_heads
    qkv = attention.qkv(x).view(images, rows * columns, 3, attention.num_heads, depth).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, heads, rows * columns, depth).unbind(0)
    keys = (k * attention.scale).transpose(1, 2).contiguous()
    placed = q.view(heads, rows, columns, depth)
    by_row, by_column = (
        get_rel_pos(size, size, table).to(q.dtype)
        for size, table in ((rows, attention.rel_pos_h), (columns, attention.rel_pos_w))
    )
    # What the distance in rows, and in columns, adds to the scores.
    down = torch.einsum("bhwc,hkc->bhwk", placed, by_row).to(q.dtype)
    across = torch.einsum("bhwc,wkc->bhwk", placed, by_column).to(q.dtype)
    out = torch.empty_like(q)
    step = max(1, _SCORES_AT_ONCE // (heads * columns * rows * columns))
    with torch.autocast(x.device.type, enabled=False):  # which would copy every table to float32 and back
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            piece = slice(start * columns, stop * columns)
            bias = down[:, start:stop, :, :, None] + across[:, start:stop, :, None, :]
            scores = torch.baddbmm(bias.flatten(1, 2).flatten(2), q[:, piece], keys)
            out[:, piece] = torch.bmm(scores.softmax(dim=-1), v)
    joined = out.view(images, attention.num_heads, rows, columns, depth).permute(0, 2, 3, 1, 4)
    return attention.proj(joined.reshape(images, rows, columns, channels))
