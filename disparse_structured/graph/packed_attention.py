"""``nn.MultiheadAttention`` whose heads together may be narrower than its input and output.

Torch's own ``forward`` takes one width, ``embed_dim``, for the input, for all heads together, and for the
output. :class:`MultiheadAttention` computes the same from the shapes of its weights, so heads can be
removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiheadAttention(nn.MultiheadAttention):
    """Torch's layer of this name, with any number of heads.

    Its parameters have torch's names: ``in_proj_weight [3 * heads * head_dim, embed_dim]`` (or
    ``q_proj_weight`` and so on) and ``out_proj.weight [embed_dim, heads * head_dim]``.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as ``nn.MultiheadAttention`` does, with the same arguments and results."""
        batched = query.dim() == 3
        inputs = [each if batched else each[None] for each in (query, key, value)]
        if batched and not self.batch_first:
            inputs = [each.transpose(0, 1) for each in inputs]
        queries, keys, values = self._projected(*inputs)
        mask = self._mask(key_padding_mask, attn_mask, queries, batched)
        weights = None
        dropped = self.dropout if self.training else 0.0
        if need_weights:
            scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropped) if dropped else weights
            attended = weights @ values
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(queries, keys, values, mask, dropped)
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _projected(self, *inputs: Tensor) -> Iterator[Tensor]:
        """Queries, keys and values ``[batch, heads, tokens, head_dim]``."""
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        for each, weight, bias in zip(inputs, weights, biases, strict=True):
            projected = F.linear(each, weight, bias)
            heads = projected.view(projected.shape[0], projected.shape[1], self.num_heads, self.head_dim)
            yield heads.transpose(1, 2)

    def _mask(
        self, padding: Tensor | None, attention: Tensor | None, queries: Tensor, batched: bool
    ) -> Tensor | None:
        """What is added to the scores ``[batch, heads, tokens, tokens]``."""
        masks = []
        if attention is not None:
            mask = _additive(attention, queries.dtype)
            masks.append(mask.view(-1, self.num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask)
        if padding is not None:
            mask = _additive(padding if batched else padding[None], queries.dtype)
            masks.append(mask[:, None, None])
        return sum(masks[1:], masks[0]) if masks else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask (True: not attended to) as numbers to add."""
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def follows_its_weights(module: nn.Module) -> bool:
    """Check whether ``module`` is torch's layer without options that :class:`MultiheadAttention` lacks."""
    return (
        type(module) is nn.MultiheadAttention
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
    )


def follow_weights(module: nn.Module) -> None:
    """Make ``module`` compute from the shapes of its weights from now on, if it is torch's layer."""
    if follows_its_weights(module):
        layer: Any = module
        layer.__class__ = MultiheadAttention
        # Torch's fused transformer layers would read the packed weights themselves.
        layer._qkv_same_embed_dim = False


@contextmanager
def following_weights(model: nn.Module) -> Iterator[None]:
    """Make all such layers of ``model`` compute that way inside the context."""
    layers: list[Any] = [module for module in model.modules() if follows_its_weights(module)]
    same = [layer._qkv_same_embed_dim for layer in layers]
    try:
        for layer in layers:
            follow_weights(layer)
        yield
    finally:
        for layer, before in zip(layers, same, strict=True):
            layer.__class__ = nn.MultiheadAttention
            layer._qkv_same_embed_dim = before
