"""Decisions from weighted damage, and the search for the weights that a goal asks for.

Removing so many units at the least ``sum_t w_t * damage_t`` takes one ranking. Which weights a goal asks for
follows from Lagrangian duality: the goals of :class:`Minimax` and :class:`Tolerance` are met where no weight
has a reason to change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from disparse_structured.decision.arbiters.ballot import Ballot

RERANKS = 24
"""How many weightings one search tries at most: within a percent of the optimum for eight tasks."""

_FARTHEST = 15.0
"""Farther than this from the start, in powers of two, a weight is as good as zero or infinite. The terms of
tasks with little weight must not be lost in rounding: they decide where the others are indifferent."""

_FINEST = 1e-7


@dataclass(frozen=True, eq=False)
class Weighed:
    """What one weighting decides.

    Args:
        keep: bool ``[units]``, True = keep.
        damage: float64 ``[tasks]``, what that costs each task.
    """

    keep: Tensor
    damage: Tensor

    @property
    def total(self) -> float:
        """The damage of all tasks, not weighted."""
        return float(added(self.damage))


def weigh(ballot: Ballot, weights: Tensor) -> Weighed:
    """The damage weighted by ``weights``, float64 ``[tasks]``, ranked once, and cut at the common ratio.

    The ratio is here a share of the cost of all units that compete. So whatever the weights are, about the
    same cost is saved, and the damage of two weightings can be compared. A unit that no task reaches is
    removed.
    """
    reached = ballot.reach.any(dim=0)
    standing = ballot.rerank(added(weights[:, None] * ballot.damage), reached)
    keep = reached & (_cost_before(ballot.unit_cost, standing, reached & (standing < 1)) >= ballot.ratio)
    return Weighed(keep, (ballot.damage * ~keep).sum(dim=1))


def _cost_before(unit_cost: Tensor, standing: Tensor, competing: Tensor) -> Tensor:
    """float64 ``[units]``: the share of the cost that is saved by units of a lower standing; 1 elsewhere.

    A unit that costs nothing counts as the cheapest one that costs something.
    """
    cost = unit_cost[competing]
    paid = cost[cost > 0]
    cost = cost.clamp(min=float(paid.min())) if len(paid) else torch.ones_like(cost)
    _, place = standing[competing].unique(return_inverse=True)
    together = cost.new_zeros(len(cost)).index_add_(0, place, cost)
    before = (together.cumsum(0) - together) / together.sum()
    result = torch.ones_like(standing)
    result[competing] = before[place]
    return result


def added(terms: Tensor) -> Tensor:
    """The sum over the tasks, the first dimension: sorted first, so that their order changes no bit."""
    return terms.sort(dim=0).values.sum(dim=0)


def ascend(visit: Callable[[Tensor], Tensor], start: Tensor) -> None:
    """Shows ``visit`` one weighting after the other, each chosen by its answer to the one before.

    ``visit`` gets binary logarithms of weights, float64 ``[weights]``, and returns which of them should
    grow (1), shrink (-1) or stay (0). Each weight has a step of its own, which doubles until the direction
    turns and is halved wherever it turns (Rprop, Riedmiller and Braun, ICNN 1993). Up to two weights depend
    on one number alone: for them that becomes bisection.
    """
    logs, step = start, torch.ones_like(start)
    before, turned = torch.zeros_like(start), torch.zeros_like(start, dtype=torch.bool)
    after_a_turn = 0.5 if len(start) <= 2 else 1.0
    for _ in range(RERANKS):
        direction = visit(logs)
        turns, continues = direction * before < 0, direction * before > 0
        turned = turned | turns
        step = step * torch.where(
            turns, 0.5, torch.where(continues, torch.where(turned, after_a_turn, 2.0), 1.0)
        )
        moved = torch.minimum(torch.maximum(logs + direction * step, start - _FARTHEST), start + _FARTHEST)
        if bool(((moved - logs).abs() < _FINEST).all()):
            return
        logs, before = moved, direction
