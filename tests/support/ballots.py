"""What the tests of arbiters share: ballots under a global ranking, and their rows in another order."""

from __future__ import annotations

import dataclasses

import torch

from disparse_structured.decision.arbiters import Ballot
from disparse_structured.decision.rankings import GlobalRanking, RankingContext
from disparse_structured.decision.votes import standings, vote


def context(units: int) -> RankingContext:
    """Units of one group that all cost the same."""
    zeros = torch.zeros(units, dtype=torch.int64)
    return RankingContext(zeros, zeros, torch.ones(units, dtype=torch.float64))


def rerank(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return GlobalRanking()(scores, mask, context(len(scores)))


def ballot_with(
    reach: torch.Tensor,
    scores: torch.Tensor,
    damage: torch.Tensor,
    ratio: float,
    weights: torch.Tensor | None = None,
    unit_cost: torch.Tensor | None = None,
) -> Ballot:
    """Every task's votes by ``scores``; all ``[tasks, units]``. By default, all units cost the same."""
    votes = vote(standings(scores, reach, GlobalRanking(), context(reach.shape[1])), reach, ratio)
    return Ballot(
        votes=votes.keep,
        reach=reach,
        scores=scores,
        ratio=ratio,
        rerank=rerank,
        weights=torch.ones(len(reach), dtype=torch.float64) if weights is None else weights,
        damage=damage,
        unit_cost=torch.ones(reach.shape[1], dtype=torch.float64) if unit_cost is None else unit_cost,
        tasks=names(len(reach)),
    )


def names(tasks: int) -> tuple[str, ...]:
    return tuple(f"task{number}" for number in range(tasks))


def reordered(ballot: Ballot, rows: list[int]) -> Ballot:
    return dataclasses.replace(
        ballot,
        votes=ballot.votes[rows],
        reach=ballot.reach[rows],
        scores=ballot.scores[rows],
        weights=ballot.weights[rows],
        damage=ballot.damage[rows],
        tasks=tuple(ballot.tasks[row] for row in rows),
    )
