"""The opposite of unanimity: one task is enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.decision.arbiters.ballot import Ballot


@dataclass(frozen=True)
class AnyTask:
    """A unit is removed as soon as one task that reaches it votes for that.

    A private unit follows its one voter; a unit that no task reaches is removed.
    """

    def __call__(self, ballot: Ballot) -> torch.Tensor:
        """Bool ``[units]``, True = keep."""
        return (ballot.votes | ~ballot.reach).all(dim=0) & ballot.reach.any(dim=0)
