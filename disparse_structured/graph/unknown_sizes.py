"""Operators whose sizes depend on the data: those of rows that ``torch.where`` or a boolean mask chooses."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree


def depends_on_data(node: fx.Node) -> bool:
    """Check whether a tensor that ``node`` reads or returns has a size that depends on the data."""
    results = (each.meta.get("val") for each in (node, *node.all_input_nodes))
    return any(map(has_unknown_size, pytree.tree_leaves(list(results))))


def has_unknown_size(leaf: Any) -> bool:
    """Check whether ``leaf`` is a tensor of the export with such a size, which is a symbol."""
    return isinstance(leaf, torch.Tensor) and not all(isinstance(size, int) for size in leaf.shape)
