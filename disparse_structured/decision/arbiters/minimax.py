"""No task fares worse than it has to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.decision.arbiters.ballot import Ballot
from disparse_structured.decision.arbiters.weighing import Weighed, added, ascend, weigh


@dataclass(frozen=True)
class Minimax:
    """The decision whose worst task's predicted damage is the smallest at the common ratio.

    Tasks that fare worse than the weighted mean gain weight, the others lose some, until all that have any
    are equally damaged; the best decision on the way counts, of equal ones that of the smaller total. All
    of them are cuts of one ranking by weighted damage, so that none is dominated by another of the same
    cost. Damage is compared between tasks as it is: scores must be in a common unit, as those of
    ``Compensated`` are. A unit that no task reaches is removed. ``weights`` of the ballot are not read.
    """

    def __call__(self, ballot: Ballot) -> torch.Tensor:
        """Bool ``[units]``, True = keep."""
        found: list[tuple[float, float, Weighed]] = []

        def visit(logs: torch.Tensor) -> torch.Tensor:
            weights = torch.exp2(logs)
            weighed = weigh(ballot, weights)
            found.append((float(weighed.damage.max()), weighed.total, weighed))
            return torch.sign(weighed.damage - added(weights * weighed.damage) / added(weights))

        ascend(visit, torch.zeros(len(ballot.damage), dtype=torch.float64))
        return min(found, key=lambda each: each[:2])[2].keep
