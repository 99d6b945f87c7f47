"""A limit on what some tasks may lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from disparse_structured.decision.arbiters.ballot import Ballot
from disparse_structured.decision.arbiters.by_name import by_task, checked_numbers
from disparse_structured.decision.arbiters.weighing import Weighed, added, ascend, weigh
from disparse_structured.errors import OptionError

_LAST = 1e-9
"""The weight of tasks without a limit, where only limits count: they decide between equals."""


@dataclass(frozen=True)
class Tolerance:
    """The smallest total damage at which no task passes its limit.

    1. If the cut by the plain sum of all tasks' damage respects every limit, it is the decision.
    2. Otherwise tasks over their limit gain weight on top of that sum, and lose it again once below. The
       decision is the one of the smallest total among those within all limits.
    3. Where no weighting of the limited tasks respects all limits at this ratio, the largest excess,
       ``damage / limit**2``, is made as small as possible as by :class:`Minimax`, and tasks without a limit
       are not considered, except between equals.

    A unit that no task reaches is removed. ``weights`` of the ballot are not read.

    Args:
        limits: by the name of the task, > 0: how far its output may be from the dense one's, relative in the
            Euclidean norm. The damage that a ballot holds is compared with the square.

    Raises:
        OptionError: no limit, or one that is not a finite number above 0.
    """

    limits: Mapping[str, float]

    def __post_init__(self) -> None:
        limits = checked_numbers(self.limits, "Tolerance", "limit", zero=False)
        if not limits:
            raise OptionError("Tolerance needs a limit for at least one task, such as {'depth': 0.05}.")
        object.__setattr__(self, "limits", limits)

    def __call__(self, ballot: Ballot) -> torch.Tensor:
        """Bool ``[units]``, True = keep.

        Raises:
            TaskError: a limit names an unknown task.
        """
        most = by_task(self.limits, ballot.tasks, torch.inf, "Tolerance").square()
        plain = weigh(ballot, torch.ones_like(most))
        if _excess(plain, most) <= 1:
            return plain.keep
        strictest = _strictest(ballot, most)
        if _excess(strictest, most) > 1:
            return strictest.keep
        return _gentlest(ballot, most, plain, strictest).keep


def _excess(weighed: Weighed, most: torch.Tensor) -> float:
    """The largest share of a limit that is used; above 1 it is passed."""
    return float((weighed.damage / most).max())


def _strictest(ballot: Ballot, most: torch.Tensor) -> Weighed:
    """The first that respects all limits when nothing else counts, or the closest to it."""
    limited = most.isfinite()
    found: list[tuple[float, float, Weighed]] = []

    def visit(logs: torch.Tensor) -> torch.Tensor:
        balance = torch.exp2(logs)
        weights = torch.full_like(most, _LAST * float((balance / most[limited]).min()))
        weights[limited] = balance / most[limited]
        weighed = weigh(ballot, weights)
        excess = (weighed.damage / most)[limited]
        found.append((float(excess.max()), weighed.total, weighed))
        if found[-1][0] <= 1:
            return torch.zeros_like(logs)
        return torch.sign(excess - added(balance * excess) / added(balance))

    ascend(visit, torch.zeros(int(limited.sum()), dtype=torch.float64))
    return min(found, key=lambda each: each[:2])[2]


def _gentlest(ballot: Ballot, most: torch.Tensor, plain: Weighed, strictest: Weighed) -> Weighed:
    """The smallest total within all limits, between ``plain``, which is not, and ``strictest``, which is."""
    limited = most.isfinite()
    best = strictest

    def visit(logs: torch.Tensor) -> torch.Tensor:
        nonlocal best
        weights = torch.ones_like(most)
        weights[limited] += torch.exp2(logs) / most[limited]
        weighed = weigh(ballot, weights)
        if _excess(weighed, most) <= 1 and weighed.total < best.total:
            best = weighed
        return torch.where(weighed.damage[limited] > most[limited], 1.0, -1.0).to(torch.float64)

    # Where a limit's worth of damage weighs as much as all damage together.
    ascend(visit, torch.full((int(limited.sum()),), plain.total, dtype=torch.float64).log2())
    return best
