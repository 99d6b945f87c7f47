"""Which part of a split dimension is the head dimension of an attention layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from disparse_structured.graph.index_tracking import packet, position_ids, trace_positions
from disparse_structured.structure.tracing import Call

aten = torch.ops.aten

_PRODUCTS = {aten.matmul, aten.bmm, aten.mm, aten.baddbmm, aten.scaled_dot_product_attention}
_LAYERS = {
    getattr(aten, name)
    for name in "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split()
}


def head_dimension(split: fx.Node, first: int, sizes: Sequence[int]) -> int | None:
    """The part of ``sizes`` that attention multiplies over, or returns: its last but one or last dimension.

    ``split`` returns the parts as its dimensions from ``first`` on; heads end up among the dimensions before.
    None where no product reads the parts.
    """
    shape = tuple(split.meta["val"].shape)
    index = position_ids(shape, first, first + len(sizes))
    for reader, node, found in trace_positions(split, index, _passes):
        for dim in _factors(reader, node):
            line = np.moveaxis(found.numpy(), dim, 0).reshape(found.shape[dim], -1)[:, 0]
            parts = np.unravel_index(line, sizes)
            varying = [part for part, positions in enumerate(parts) if (positions != positions[0]).any()]
            if varying:
                return varying[-1]
    return None


def _passes(node: fx.Node, source: fx.Node) -> bool:
    """Whether dimensions of ``source`` keep their places: arithmetic, activations, normalisation."""
    value, read = node.meta.get("val"), source.meta["val"]
    same = isinstance(value, torch.Tensor) and isinstance(read, torch.Tensor) and value.shape == read.shape
    return same and packet(node) not in {*_PRODUCTS, aten.einsum, *_LAYERS}


def _factors(product: fx.Node, operand: fx.Node) -> list[int]:
    """The dimensions of ``operand`` that ``product`` does not take one by one, last first."""
    if packet(product) in _PRODUCTS:
        return [-1, -2]
    if packet(product) is not aten.einsum:
        return []
    call = Call(product, lambda item: item)
    equation = call.raw["equation"].replace(" ", "")
    terms = equation.replace("->", ",").split(",")
    term = terms[call.raw["tensors"].index(operand)]
    everywhere = set(term).intersection(*terms)
    return [] if "." in equation else [dim for dim, letter in enumerate(term) if letter not in everywhere]
