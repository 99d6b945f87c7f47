"""Inputs of other sizes, made from the values of the given ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import batched_leaves, map_batched

Inputs = tuple[Any, ...]


def largest_size(inputs: Inputs) -> tuple[int, ...] | None:
    """Return the height, width and so on of the largest image among ``inputs``; None if there is none."""
    pairs = zip(pytree.tree_leaves(inputs), batched_leaves(inputs), strict=True)
    sizes = {tuple(leaf.shape[2:]) for leaf, batched in pairs if batched and leaf.ndim > 2}
    return max(sizes, key=sum) if sizes else None


def of_size(inputs: Inputs, sides: tuple[int, ...], others: tuple[int, ...]) -> Inputs:
    """Return ``inputs`` with images of ``sides`` brought to ``others``, and all others in proportion."""

    def sizes(leaf: torch.Tensor) -> dict[int, int]:
        own = leaf.shape[2:]
        if len(own) != len(sides):
            return {}
        return {2 + i: max(1, side * others[i] // sides[i]) for i, side in enumerate(own)}

    return repeated(inputs, sizes)


def enlarged(inputs: Inputs, factor: int) -> Inputs:
    """Return ``inputs`` with all images ``factor`` times as high and wide."""
    sides = largest_size(inputs)
    if factor == 1 or sides is None:
        return inputs
    return of_size(inputs, sides, tuple(factor * side for side in sides))


def repeated(inputs: Inputs, sizes: Callable[[torch.Tensor], dict[int, int]]) -> Inputs:
    """Return batched ``inputs`` repeated or cut along dimensions, so that values stay in their range.

    Args:
        sizes: from a tensor to the new sizes of its dimensions.
    """

    def resized(leaf: torch.Tensor) -> torch.Tensor:
        for dim, size in sizes(leaf).items():
            positions = torch.arange(size, device=leaf.device) % leaf.shape[dim]
            leaf = leaf.index_select(dim, positions)
        return leaf

    return map_batched(resized, inputs)
