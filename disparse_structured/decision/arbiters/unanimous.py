"""The default: all tasks must agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.decision.arbiters.ballot import Ballot


@dataclass(frozen=True)
class Unanimous:
    """A unit is removed only if every task that reaches it votes for that (DiSparse, CVPR 2022).

    A private unit follows its one voter; a unit that no task reaches is removed.
    """

    def __call__(self, ballot: Ballot) -> torch.Tensor:
        """Bool ``[units]``, True = keep."""
        return (ballot.votes & ballot.reach).any(dim=0)
