"""A stated number of votes decides."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.decision.arbiters.ballot import Ballot
from disparse_structured.errors import OptionError


@dataclass(frozen=True)
class Quorum:
    """A unit is removed if at least ``k`` of the tasks that reach it vote for that.

    Where fewer than ``k`` tasks reach the unit, all of them must: a private unit follows its one voter,
    and a unit that no task reaches is removed. ``Quorum(1)`` is :class:`AnyTask`; ``Quorum(k)`` with ``k`` at
    least the number of tasks is :class:`Unanimous`.

    Raises:
        OptionError: ``k`` is not an integer >= 1.
    """

    k: int

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise OptionError(f"Quorum needs a number of votes, an integer >= 1, got {self.k!r}.")

    def __call__(self, ballot: Ballot) -> torch.Tensor:
        """Bool ``[units]``, True = keep."""
        return ballot.removals < ballot.voters.clamp(max=self.k)
