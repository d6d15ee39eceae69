"""Segment Anything's mask decoder, rearranged for many prompts on one image.

``MaskDecoder.predict_masks`` repeats the image for every prompt and projects all its tokens again and again: on a
processor nearly all of its time goes there. The same numbers come out of less work:

- In the first layer the image is the same for all prompts, so its projections are made once.
- A prompt has few tokens. Where they attend to the image, the projection of the keys is folded into the few queries and
  that of the values into the few results; where the image attends to them, the projection of its queries is folded into
  the few keys, and that of the output into the few values. The projections of the positions are made once.
- The quality of a mask is known before its pixels: masks that are not good enough are never drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from cmseg_core.foreground.sam import SamModel


@dataclass(frozen=True, eq=False)
class SeenImage:
    """What prompts on one image share.

    Attributes
    ----------
    tokens : Tensor, shape (n, channels)
        The embedding, with what stands for the absence of a mask prompt.
    first_keys, first_values, first_queries : Tensor, shape (heads, n, depth)
        Projections of the first layer.
    """

    tokens: torch.Tensor
    first_keys: torch.Tensor
    first_values: torch.Tensor
    first_queries: torch.Tensor


class PromptDecoder:
    """Masks of many prompts on one image; the numbers are those of ``MaskDecoder.predict_masks``, to rounding.

    Parameters
    ----------
    sam : SamModel
    dtype : torch.dtype
        Of the computation.
    """

    def __init__(self, sam: SamModel, dtype: torch.dtype) -> None:
        decoder, self.encoder = sam.network.mask_decoder, sam.network.prompt_encoder
        # As in the official generator: three masks a prompt, and not the one for many prompts together. The official
        # models give the whole, a part and a part of a part; one trained on cells three attempts at the whole cell.
        self.asked = slice(1, decoder.num_mask_tokens)
        self.dtype, self.device = dtype, sam.device
        self.transformer, self.heads = decoder.transformer, decoder.transformer.num_heads
        self.output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        self.upscaling = decoder.output_upscaling
        self.hypernetworks = decoder.output_hypernetworks_mlps[self.asked]
        self.quality_head = decoder.iou_prediction_head
        self.grid: tuple[int, int] = self.encoder.image_embedding_size
        self.positions = self._flat(self.encoder.get_dense_pe())
        self.no_mask = self.encoder.no_mask_embed.weight
        attentions = [layer.cross_attn_token_to_image for layer in self.transformer.layers[1:]]
        attentions.append(self.transformer.final_attn_token_to_image)
        self.position_keys = [self._split(F.linear(self.positions, a.k_proj.weight)) for a in attentions]
        self.position_queries = [
            self._split(a.q_proj(self.positions))
            for a in (layer.cross_attn_image_to_token for layer in self.transformer.layers[1:])
        ]

    def see(self, embedding: torch.Tensor) -> SeenImage:
        """Prepare the embedding (1, channels, rows, columns) of an image for prompts."""
        tokens = self._flat(embedding.float()) + self.no_mask
        placed, first = tokens + self.positions, self.transformer.layers[0]
        to_image, to_token = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        shared = (
            tokens,
            self._split(to_image.k_proj(placed)),
            self._split(to_image.v_proj(tokens)),
            self._split(to_token.q_proj(placed)),
        )
        return SeenImage(*(one.to(self.dtype) for one in shared))

    def embed(self, points: torch.Tensor | None, boxes: torch.Tensor | None) -> torch.Tensor:
        """Prompts as tokens (prompts, 2, channels): points (x, y), or boxes (left, top, right, bottom), in pixels of
        the model's input."""
        if points is not None:
            labels = torch.ones(len(points), 1, dtype=torch.int, device=self.device)
            return self.encoder(points=(points[:, None], labels), boxes=None, masks=None)[0]
        return self.encoder(points=None, boxes=boxes, masks=None)[0]

    def decode(self, image: SeenImage, prompts: torch.Tensor) -> tuple[torch.Tensor, Callable[..., torch.Tensor]]:
        """Quality of the masks of some prompts, and a function that draws those that are wanted.

        Parameters
        ----------
        image : SeenImage
        prompts : Tensor of float32, shape (prompts, tokens, channels)
            As :meth:`embed` gives them.

        Returns
        -------
        quality : Tensor of float32, shape (prompts, masks)
        draw : callable
            Takes the numbers of prompts (k,) and of their masks (k,); gives logits (k, 4 rows, 4 columns).
        """
        outputs = self.output_tokens.expand(len(prompts), -1, -1)
        placed = torch.cat([outputs, prompts], dim=1)
        tokens, keys = placed, image.tokens.expand(len(prompts), -1, -1)
        for number, layer in enumerate(self.transformer.layers):
            tokens = self._self_attention(layer, tokens, placed)
            attention = layer.cross_attn_token_to_image
            if number == 0:
                found = self._to_shared_image(attention, tokens + placed, image)
            else:
                found = self._to_image(attention, tokens + placed, keys, self.position_keys[number - 1])
            tokens = layer.norm2(tokens + found)
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            back = self._to_tokens(layer.cross_attn_image_to_token, number, keys, tokens, placed, image)
            keys = self._norm(layer.norm4, keys + back)
        # The last attention serves the tokens that are read alone.
        read = slice(0, 1 + self.asked.stop)
        last = self.transformer.final_attn_token_to_image
        found = self._to_image(last, (tokens + placed)[:, read], keys, self.position_keys[-1])
        tokens = self.transformer.norm_final_attn(tokens[:, read] + found)
        quality = self.quality_head(tokens[:, 0])[:, self.asked]
        drawn = tokens[:, 1:][:, self.asked]

        def draw(prompt: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self._draw(keys, drawn, prompt, mask)

        return quality, draw

    def _draw(self, keys: torch.Tensor, drawn: torch.Tensor, prompt: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows, columns = self.grid
        if not len(prompt):
            return torch.zeros(0, 4 * rows, 4 * columns, device=self.device)
        chosen, where = torch.unique(prompt, return_inverse=True)
        maps = keys[chosen].transpose(1, 2).reshape(len(chosen), -1, rows, columns)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            maps = self.upscaling(maps)
        weights = torch.stack([network(drawn[:, m]) for m, network in enumerate(self.hypernetworks)], dim=1)
        weights = weights[prompt, mask].to(maps.dtype)
        logits = torch.stack([w @ maps[i].flatten(1) for w, i in zip(weights, where.tolist(), strict=True)])
        return logits.float().view(len(prompt), *maps.shape[-2:])

    @staticmethod
    def _self_attention(layer: Any, tokens: torch.Tensor, placed: torch.Tensor) -> torch.Tensor:
        if layer.skip_first_layer_pe:
            return layer.norm1(layer.self_attn(q=tokens, k=tokens, v=tokens))
        q = tokens + placed
        return layer.norm1(tokens + layer.self_attn(q=q, k=q, v=tokens))

    def _to_shared_image(self, attention: Any, queries: torch.Tensor, image: SeenImage) -> torch.Tensor:
        """Tokens attend to the image that is the same for all prompts."""
        q = self._by_head(attention.q_proj(queries))  # heads, prompts x tokens, depth
        found = F.scaled_dot_product_attention(q.to(self.dtype), image.first_keys, image.first_values)
        return attention.out_proj(self._joined(found.float(), len(queries)))

    def _to_image(
        self, attention: Any, queries: torch.Tensor, keys: torch.Tensor, position_keys: torch.Tensor
    ) -> torch.Tensor:
        """Tokens attend to the image as each prompt has changed it."""
        prompts, tokens, _ = queries.shape
        q = attention.q_proj(queries).view(prompts, tokens, self.heads, -1) / _scale(attention, self.heads)
        # The bias of the keys adds the same to all scores of a query, which a softmax does not mind.
        folded = torch.einsum("pthd,hdc->phtc", q, self._weights(attention.k_proj.weight))
        folded = folded.reshape(prompts, self.heads * tokens, -1).to(self.dtype)
        scores = torch.baddbmm(self._position_scores(q, position_keys), folded, keys.transpose(1, 2))
        shares = scores.softmax(dim=-1)
        seen = torch.bmm(shares, keys).float().view(prompts, self.heads, tokens, -1)
        values = torch.einsum("phtc,hdc->pthd", seen, self._weights(attention.v_proj.weight))
        return attention.out_proj(values.reshape(prompts, tokens, -1) + attention.v_proj.bias)

    def _position_scores(self, q: torch.Tensor, position_keys: torch.Tensor) -> torch.Tensor:
        """What the positions of the image add to the scores: (prompts, heads x tokens, n)."""
        prompts, tokens, heads, depth = q.shape
        flat = q.permute(2, 0, 1, 3).reshape(heads, prompts * tokens, depth).to(self.dtype)
        scores = torch.bmm(flat, position_keys.to(self.dtype).transpose(1, 2))
        return scores.view(heads, prompts, tokens, -1).transpose(0, 1).reshape(prompts, heads * tokens, -1)

    def _to_tokens(
        self,
        attention: Any,
        number: int,
        keys: torch.Tensor,
        tokens: torch.Tensor,
        placed: torch.Tensor,
        image: SeenImage,
    ) -> torch.Tensor:
        """The image attends to the tokens of each prompt."""
        prompts, count, _ = tokens.shape
        k = attention.k_proj(tokens + placed).view(prompts, count, self.heads, -1)
        k = k / _scale(attention, self.heads)
        v = attention.v_proj(tokens).view(prompts, count, self.heads, -1)
        if number == 0:
            scores = self._position_scores(k, image.first_queries)
        else:
            folded = torch.einsum("pthd,hdc->phtc", k, self._weights(attention.q_proj.weight))
            folded = folded.reshape(prompts, self.heads * count, -1).to(self.dtype)
            # The bias of the queries is in the positions' share.
            scores = self._position_scores(k, self.position_queries[number - 1])
            scores = torch.baddbmm(scores, folded, keys.transpose(1, 2))
        shares = scores.view(prompts, self.heads, count, -1).softmax(dim=2).view(prompts, self.heads * count, -1)
        out = attention.out_proj.weight.view(-1, self.heads, v.shape[-1])
        results = torch.einsum("pthd,chd->phtc", v, out).reshape(prompts, self.heads * count, -1).to(self.dtype)
        return torch.bmm(shares.transpose(1, 2), results) + attention.out_proj.bias.to(self.dtype)

    def _norm(self, norm: Any, x: torch.Tensor) -> torch.Tensor:
        weight, bias = norm.weight.to(self.dtype), norm.bias.to(self.dtype)
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

    def _weights(self, weight: torch.Tensor) -> torch.Tensor:
        """Of a projection, by head: (heads, depth, channels)."""
        return weight.view(self.heads, -1, weight.shape[1])

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """(n, heads x depth) as (heads, n, depth)."""
        return x.view(len(x), self.heads, -1).transpose(0, 1).contiguous()

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        """(prompts, tokens, heads x depth) as (heads, prompts x tokens, depth)."""
        prompts, tokens, _ = x.shape
        return x.view(prompts, tokens, self.heads, -1).permute(2, 0, 1, 3).reshape(self.heads, prompts * tokens, -1)

    def _joined(self, x: torch.Tensor, prompts: int) -> torch.Tensor:
        """The inverse of :meth:`_by_head`."""
        return x.view(self.heads, prompts, -1, x.shape[-1]).permute(1, 2, 0, 3).flatten(2)

    @staticmethod
    def _flat(maps: torch.Tensor) -> torch.Tensor:
        """(1, channels, rows, columns) as (n, channels)."""
        return maps[0].flatten(1).T


def _scale(attention: Any, heads: int) -> float:
    """By what scores are divided."""
    return (attention.internal_dim // heads) ** 0.5
