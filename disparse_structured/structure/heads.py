"""Finds the part of a split dimension that is the head dimension of an attention layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from disparse_structured.graph.index_tracking import position_ids, trace_positions
from disparse_structured.graph.operators import named_arguments, operator_of, spelled_out


def head_dimension(split: fx.Node, first: int, sizes: Sequence[int]) -> int | None:
    """Find the part of ``sizes`` that attention contracts over or returns, in one of its last two dimensions.

    ``split`` returns the parts as its dimensions from ``first`` on; heads end up in the leading dimensions.
    None if no product reads the parts.
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
    """Whether the dimensions of ``source`` keep their places: arithmetic, activations, normalization."""
    value, read = node.meta.get("val"), source.meta["val"]
    same = isinstance(value, torch.Tensor) and isinstance(read, torch.Tensor) and value.shape == read.shape
    return same and operator_of(node).contracts is None


def _factors(product: fx.Node, operand: fx.Node) -> list[int]:
    """The dimensions of ``operand`` that are not batch dimensions of ``product``."""
    contracts = operator_of(product).contracts
    if contracts is not None and contracts.kind in ("matmul", "attention"):
        return [-1, -2]
    if contracts is None or contracts.kind != "einsum":
        return []
    given = named_arguments(product)
    ranks = [each.meta["val"].ndim for each in given["tensors"]]
    equation = spelled_out(given["equation"].replace(" ", ""), ranks)
    terms = equation.replace("->", ",").split(",")
    term = terms[given["tensors"].index(operand)]
    everywhere = set(term).intersection(*terms)
    return [dim for dim, letter in enumerate(term) if letter not in everywhere]
