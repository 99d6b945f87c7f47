"""Rankings: how the layers of a network compete for the units that one task gives up.

Any callable of :class:`Ranking`'s signature is one. Everything here is pure; all vectors are flat over the
units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from disparse_structured.structure.groups import ChannelGroup


@dataclass(frozen=True, eq=False)
class RankingContext:
    """What a ranking may know about the units besides their scores.

    Args:
        group: int64 ``[units]``, the position of the unit's channel group.
        isomorphic: int64 ``[units]``, the class of isomorphic groups the unit belongs to.
        unit_cost: float64 ``[units]``, what removing the unit saves, in the budget's own cost. Where that
            cost falls in steps, the share of a unit in the steepest fall of its group.
    """

    group: torch.Tensor
    isomorphic: torch.Tensor
    unit_cost: torch.Tensor


class Ranking(Protocol):
    """How layers compete.

    Called with ``scores`` float64 ``[units]`` (higher = keep longer) and ``mask`` bool ``[units]`` (the
    units that take part). Returns the *standing*, float64 ``[units]`` in [0, 1) inside the mask: the share
    of the competing units that are removed before this one. Values outside the mask are not read.
    """

    def __call__(self, scores: torch.Tensor, mask: torch.Tensor, context: RankingContext) -> torch.Tensor:
        """The standing of every unit."""
        ...


@dataclass(frozen=True)
class GlobalRanking:
    """All layers compete by score, as DiSparse ranks its weights."""

    def __call__(self, scores: torch.Tensor, mask: torch.Tensor, context: RankingContext) -> torch.Tensor:
        """The standing of every unit, see :class:`Ranking`."""
        return _share_before(scores, mask, torch.zeros_like(context.group))


@dataclass(frozen=True)
class PerCostRanking:
    """All layers compete by score per unit of the budget's own cost.

    A unit that costs nothing counts as the cheapest one that costs something, so that scores decide
    between the two. Where no unit costs anything, scores alone decide.
    """

    def __call__(self, scores: torch.Tensor, mask: torch.Tensor, context: RankingContext) -> torch.Tensor:
        """The standing of every unit, see :class:`Ranking`."""
        cost = context.unit_cost
        paid = cost[cost > 0]
        cheapest = paid.min() if len(paid) else cost.new_ones(())
        return _share_before(scores / cost.clamp(min=cheapest), mask, torch.zeros_like(context.group))


@dataclass(frozen=True)
class IsomorphicRanking:
    """Only layers of one shape of slice compete (after Isomorphic Pruning, Fang et al., ECCV 2024)."""

    def __call__(self, scores: torch.Tensor, mask: torch.Tensor, context: RankingContext) -> torch.Tensor:
        """The standing of every unit, see :class:`Ranking`."""
        return _share_before(scores, mask, context.isomorphic)


@dataclass(frozen=True)
class LayerRanking:
    """Units compete within their own channel group only: uniform widths."""

    def __call__(self, scores: torch.Tensor, mask: torch.Tensor, context: RankingContext) -> torch.Tensor:
        """The standing of every unit, see :class:`Ranking`."""
        return _share_before(scores, mask, context.group)


def ranking_context(groups: Sequence[ChannelGroup], unit_cost: torch.Tensor) -> RankingContext:
    """The context of ``groups``; ``unit_cost`` is float64 ``[units]``.

    Two groups are isomorphic when a unit of either is made of the same slices: same kind, and the same
    parameter roles, dimensions and numbers of positions. Widths may differ.
    """
    classes: dict[object, int] = {}
    kinds = [classes.setdefault(_signature(group), len(classes)) for group in groups]
    units = torch.tensor([group.units for group in groups], dtype=torch.int64)
    return RankingContext(
        group=torch.repeat_interleave(torch.arange(len(groups)), units),
        isomorphic=torch.repeat_interleave(torch.tensor(kinds, dtype=torch.int64), units),
        unit_cost=unit_cost,
    )


def _signature(group: ChannelGroup) -> object:
    members = sorted((m.parameter.rpartition(".")[2], m.dim, m.index.shape[1]) for m in group.members)
    return group.kind, tuple(members)


def _share_before(keys: torch.Tensor, mask: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Rank over class size, lowest key first, ties by unit index."""
    result = torch.ones(len(keys), dtype=torch.float64)
    index = mask.nonzero().squeeze(1)
    order = index[keys[index].argsort(stable=True)]
    order = order[classes[order].argsort(stable=True)]
    _, inverse, counts = torch.unique_consecutive(classes[order], return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order)) - first[inverse]
    result[order] = rank.to(torch.float64) / counts[inverse]
    return result
