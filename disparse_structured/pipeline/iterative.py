"""Votes in several rounds, each on scores of what the last one left."""

from __future__ import annotations

from dataclasses import dataclass

from disparse_structured.checks import check_counts
from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.arbiters import Arbiter, Unanimous
from disparse_structured.decision.rankings import PerCostRanking, Ranking
from disparse_structured.pipeline.disparse import DiSparse
from disparse_structured.pipeline.method import (
    Decided,
    Problem,
    decide_in_rounds,
    refit_passes,
    scoring_passes,
)
from disparse_structured.pipeline.options import check_refit, check_rules
from disparse_structured.refit import LeastSquares, RefitMethod
from disparse_structured.scoring import Criterion
from disparse_structured.scoring.criteria import Fisher
from disparse_structured.structure import Structure

_FISHER, _UNANIMOUS, _PER_COST, _LEAST_SQUARES = (
    Fisher(),
    Unanimous(),
    PerCostRanking(),
    LeastSquares(shifts=0),
)


@dataclass(frozen=True)
class Iterative:
    """DiSparse's votes, taken again after every round; between rounds the remaining weights are refit.

    Nothing is trained. :class:`disparse_structured.regimes.Iterative` trains between its stages.

    Args:
        criterion, arbiter, ranking: as in :class:`~disparse_structured.DiSparse`.
        rounds: how many; at least 1. The budgets of the rounds are a geometric series.
        refit: how the remaining weights are refit between rounds; None leaves them unchanged.

    Raises:
        OptionError: ``rounds`` is below 1, or a choice has the wrong kind.
    """

    criterion: Criterion = _FISHER
    arbiter: Arbiter = _UNANIMOUS
    ranking: Ranking = _PER_COST
    rounds: int = 3
    refit: RefitMethod | None = _LEAST_SQUARES

    def __post_init__(self) -> None:
        check_rules(criterion=self.criterion, arbiter=self.arbiter, ranking=self.ranking)
        check_refit(self.refit)
        check_counts(rounds=self.rounds)

    def passes(
        self, structure: Structure, calibration: Calibration, scored: int | None, share: float
    ) -> float | None:
        """See :class:`~disparse_structured.pipeline.method.Counting`."""
        if scored is None:
            return None
        between = (self.rounds - 1) * refit_passes(self.refit, calibration)
        return self.rounds * scoring_passes(structure, scored) + between

    def decide(self, problem: Problem) -> Decided:
        """See :class:`~disparse_structured.pipeline.method.Method`."""
        votes = DiSparse(self.criterion, self.arbiter, self.ranking)
        return decide_in_rounds(votes, problem, self.rounds, self.refit)
