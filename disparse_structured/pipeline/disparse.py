"""DiSparse on units: every task votes once, as if it were alone, and the arbiter decides."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.arbiters import Arbiter, Unanimous
from disparse_structured.decision.rankings import PerCostRanking, Ranking
from disparse_structured.pipeline.method import Decided, Problem, scoring_passes, vote
from disparse_structured.pipeline.options import check_rules
from disparse_structured.scoring import Criterion, Saliency, score
from disparse_structured.scoring.criteria import Fisher
from disparse_structured.structure import Structure

_FISHER, _UNANIMOUS, _PER_COST = Fisher(), Unanimous(), PerCostRanking()


@dataclass(frozen=True)
class DiSparse:
    """One-shot votes: the method of DiSparse (Sun et al., CVPR 2022), carried from weights to units.

    Each task is scored by its own loss, or by the response of its own output where it has no loss. It votes
    as if it were alone, and by default a shared unit is removed only if every task that reaches it agrees.

    Args:
        criterion: how units are scored. Any callable of that signature will do.
        arbiter: how votes become a decision. Any callable of that signature will do.
        ranking: how layers compete within one task's vote.

    Raises:
        OptionError: a choice cannot be called.

    >>> from disparse_structured import DiSparse, arbiters, criteria
    >>> DiSparse(criteria.Taylor(), arbiters.Majority())
    DiSparse(criterion=Taylor(), arbiter=Majority(), ranking=PerCostRanking())
    """

    criterion: Criterion = _FISHER
    arbiter: Arbiter = _UNANIMOUS
    ranking: Ranking = _PER_COST

    def __post_init__(self) -> None:
        check_rules(criterion=self.criterion, arbiter=self.arbiter, ranking=self.ranking)

    def decide(self, problem: Problem) -> Decided:
        """See :class:`~disparse_structured.pipeline.method.Method`."""
        found: Saliency = problem.once("scores", lambda: self.score(problem))
        return vote(self, problem.structure, found.scores, problem.budget), found

    def passes(
        self, structure: Structure, calibration: Calibration, scored: int | None, share: float
    ) -> float | None:
        """See :class:`~disparse_structured.pipeline.method.Counting`."""
        return None if scored is None else scoring_passes(structure, scored)

    def score(self, problem: Problem, keep: torch.Tensor | None = None) -> Saliency:
        """See :class:`~disparse_structured.pipeline.Repeatable`."""
        return score(
            problem.model,
            problem.structure,
            problem.data,
            self.criterion,
            to_inputs=problem.to_inputs,
            seed=problem.seed,
            max_batches=problem.max_batches,
            keep=keep,
            progress=problem.progress,
        )
