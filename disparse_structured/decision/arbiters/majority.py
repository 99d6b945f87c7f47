"""Most of the voters decide."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.decision.arbiters.ballot import Ballot


@dataclass(frozen=True)
class Majority:
    """A unit is removed if more than half of the tasks that reach it vote for that; a draw keeps it.

    A private unit follows its one voter; a unit that no task reaches is removed.
    """

    def __call__(self, ballot: Ballot) -> torch.Tensor:
        """Bool ``[units]``, True = keep."""
        voters = ballot.voters
        return (2 * ballot.removals <= voters) & (voters > 0)
