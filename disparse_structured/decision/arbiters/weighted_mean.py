"""One score instead of votes: the joint ranking that most pruners use."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.decision.arbiters.ballot import Ballot


@dataclass(frozen=True)
class WeightedMean:
    """The tasks' scores are averaged by weight, ranked once more, and cut at the common ratio.

    The mean is over the tasks that reach a unit. A unit that no task reaches is removed. Scores are
    normalized per task first, so the scale of a loss does not matter; the weights do. Where the weights
    of all tasks that reach a unit are zero, its score is zero.
    """

    def __call__(self, ballot: Ballot) -> torch.Tensor:
        """Bool ``[units]``, True = keep."""
        weights = ballot.weights[:, None] * ballot.reach
        total = weights.sum(dim=0)
        mean = (weights * ballot.scores).sum(dim=0) / total.masked_fill(total == 0, 1.0)
        reached = ballot.reach.any(dim=0)
        return reached & (ballot.rerank(mean, reached) >= ballot.ratio)
