"""Each task's own selection: scores of one task in, its vote on every unit it reaches out.

A task ranks only the units it reaches, as if the other heads did not exist, under the same ratio as
every other task (DiSparse, Sun et al., CVPR 2022). How layers compete inside one task is a
:class:`Ranking`, a stated choice. Everything here is pure; all vectors are flat over the units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from disparse_structured.errors import PlanError
from disparse_structured.structure.groups import ChannelGroup


@dataclass(frozen=True, eq=False)
class RankingContext:
    """What a ranking may know about the units besides their scores.

    Args:
        group: int64 ``[units]``, the position of the unit's channel group.
        isomorphic: int64 ``[units]``, the class of isomorphic groups the unit belongs to.
        unit_cost: float64 ``[units]``, what removing the unit alone saves, in the budget's own cost.
    """

    group: torch.Tensor
    isomorphic: torch.Tensor
    unit_cost: torch.Tensor


class Ranking(Protocol):
    """How layers compete.

    Called with ``scores`` float64 ``[units]`` (higher = keep longer) and ``mask`` bool ``[units]`` (the
    units that take part). Returns the *standing*, float64 ``[units]`` in [0, 1) inside the mask: the share
    of the competing units that go before this one. Values outside the mask are not read.
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

    A unit without cost counts as the cheapest one that has some.
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


@dataclass(frozen=True, eq=False)
class Votes:
    """What every task chose at one ratio.

    Args:
        keep: bool ``[tasks, units]``; True where the task does not reach the unit or may not choose.
        ratio: the share of its own units that each task gives up.
        standing: float64 ``[tasks, units]``, from which the votes at any other ratio follow.
    """

    keep: torch.Tensor
    ratio: float
    standing: torch.Tensor


def vote(standing: torch.Tensor, mask: torch.Tensor, ratio: float) -> Votes:
    """The votes at ``ratio``: remove where ``standing < ratio`` inside ``mask`` ``[tasks, units]``.

    The units removed at one ratio are removed at every larger one.
    """
    return Votes(keep=~(mask & (standing < ratio)), ratio=ratio, standing=standing)


def normalise(saliency: torch.Tensor, reach: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
    """Each task's saliency divided by its sum over the units that task reaches (DiSparse, CVPR 2022).

    Args:
        saliency: ``[tasks, units]``, finite and >= 0; what lies outside ``reach`` is ignored.
        reach: bool ``[tasks, units]``.
        tasks: names, for the error.

    Returns:
        float64 ``[tasks, units]``, 0 outside ``reach``; a task with nothing but zeros stays at zeros.

    Raises:
        PlanError: another shape, or a value that is negative, NaN or infinite.
    """
    if saliency.shape != reach.shape:
        raise PlanError(
            f"the saliency has shape {tuple(saliency.shape)}, expected [tasks, units] = "
            f"{tuple(reach.shape)}. Return one row per task and one value per unit."
        )
    scores = saliency.detach().to(device="cpu", dtype=torch.float64).masked_fill(~reach, 0.0)
    for name, row in zip(tasks, scores, strict=True):
        bad = ~torch.isfinite(row) | (row < 0)
        if bad.any():
            unit = int(bad.nonzero()[0])
            raise PlanError(
                f"task {name!r}: the saliency of {int(bad.sum())} units is not a finite number >= 0 "
                f"(first: unit {unit}, {float(row[unit])}). Check the criterion and the task's loss."
            )
    # By the largest first: the sum of finite saliencies may overflow.
    largest = scores.amax(dim=1, keepdim=True) if scores.shape[1] else scores.new_zeros(len(scores), 1)
    scores = scores / largest.masked_fill(largest == 0, 1.0)
    total = scores.sum(dim=1, keepdim=True)
    return scores / total.masked_fill(total == 0, 1.0)


def standings(
    scores: torch.Tensor, mask: torch.Tensor, ranking: Ranking, context: RankingContext
) -> torch.Tensor:
    """Every task ranked by itself: float64 ``[tasks, units]``, 1 outside ``mask``.

    Raises:
        PlanError: the ranking returned something that is no standing.
    """
    return torch.stack([standing(row, own, ranking, context) for row, own in zip(scores, mask, strict=True)])


def standing(
    scores: torch.Tensor, mask: torch.Tensor, ranking: Ranking, context: RankingContext
) -> torch.Tensor:
    """One ranking's checked answer: float64 ``[units]``, 1 outside ``mask``; see :func:`standings`."""
    found = ranking(scores, mask, context)
    name = type(ranking).__name__
    if not isinstance(found, torch.Tensor) or found.shape != scores.shape or not found.is_floating_point():
        is_tensor = isinstance(found, torch.Tensor)
        what = f"{found.dtype} {list(found.shape)}" if is_tensor else type(found).__name__
        raise PlanError(
            f"the ranking {name} returned {what}, expected floating point [units] = {list(scores.shape)}."
        )
    inside = found[mask]
    if not bool(((inside >= 0) & (inside < 1)).all()):
        raise PlanError(
            f"the ranking {name} returned standings outside [0, 1). A standing is the share of the "
            "competing units that go before this one: rank / number of units."
        )
    return found.to(torch.float64).masked_fill(~mask, 1.0)


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
