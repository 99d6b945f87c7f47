"""From scores to what the arbiter decides at any ratio."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from disparse_structured.checks import check_object, is_number, shown
from disparse_structured.decision.arbiters import Arbiter, Ballot, arbitrate
from disparse_structured.decision.contracts import PrunableStructure
from disparse_structured.decision.rankings import Ranking, RankingContext
from disparse_structured.decision.votes import Votes, normalize, standing, standings, vote
from disparse_structured.errors import OptionError


@dataclass(frozen=True, eq=False)
class Election:
    """Everything that the votes and the decision at a ratio follow from; see :meth:`of`.

    Args:
        structure: groups, tasks and reach.
        own: bool ``[tasks, units]``, the units that each task may vote on.
        shares: float64 ``[tasks, units]``, each task's scores divided by their sum.
        damage: float64 ``[tasks, units]``, the scores as they came, 0 outside reach.
        standing: float64 ``[tasks, units]``, from which the votes at any ratio follow.
        free: bool ``[units]``, the units that may be removed.
        weights: float64 ``[tasks]``.
        unit_cost: float64 ``[units]``, what removing each unit saves.
        arbiter: the rule that decides.
        rerank: the ranking in force, over the free units.
    """

    structure: PrunableStructure
    own: torch.Tensor
    shares: torch.Tensor
    damage: torch.Tensor
    standing: torch.Tensor
    free: torch.Tensor
    weights: torch.Tensor
    unit_cost: torch.Tensor
    arbiter: Arbiter
    rerank: _Rerank

    @classmethod
    def of(
        cls,
        structure: PrunableStructure,
        scores: torch.Tensor,
        free: torch.Tensor,
        *,
        arbiter: Arbiter,
        ranking: Ranking,
        context: RankingContext,
        weights: Iterable[float] | None = None,
    ) -> Election:
        """The election by ``scores`` ``[tasks, units]`` over the ``free`` units, bool ``[units]``.

        Raises:
            OptionError: scores, weights or what the ranking returns are not what they must be.
        """
        shares = normalize(scores, structure.reach, structure.tasks)
        own = structure.reach & free
        return cls(
            structure=structure,
            own=own,
            shares=shares,
            damage=scores.detach().to("cpu", torch.float64).masked_fill(~structure.reach, 0.0),
            standing=standings(shares, own, ranking, context),
            free=free,
            weights=_weights(weights, structure.tasks),
            unit_cost=context.unit_cost,
            arbiter=arbiter,
            rerank=_Rerank(ranking, context, free),
        )

    @property
    def asked(self) -> torch.Tensor:
        """Bool ``[units]``: the units that some task may vote on."""
        return self.own.any(dim=0)

    def votes(self, ratio: float) -> Votes:
        """What every task chooses if it gives up this share of its own units."""
        return vote(self.standing, self.own, ratio)

    def decision(self, ratio: float) -> torch.Tensor:
        """Bool ``[units]``, True = keep: what the arbiter makes of the votes at ``ratio``."""
        ballot = Ballot(
            votes=self.votes(ratio).keep,
            reach=self.structure.reach,
            scores=self.shares,
            ratio=ratio,
            rerank=self.rerank,
            weights=self.weights,
            damage=self.damage,
            unit_cost=self.unit_cost,
            tasks=self.structure.tasks,
        )
        return arbitrate(self.arbiter, ballot) | ~self.free

    def importance(self) -> torch.Tensor:
        """int64 ``[units]``: all units, most important first.

        By the ranking in force on the mean score of the tasks that reach a unit, then by that score, then by
        index.
        """
        mean = self.shares.sum(dim=0) / self.structure.reach.sum(dim=0).clamp(min=1)
        place = self.rerank(mean, self.asked).masked_fill(~self.asked, -1.0)
        order = mean.argsort(descending=True, stable=True)
        return order[place[order].argsort(descending=True, stable=True)]


class _Rerank:
    """The ranking in force, over the free units; remembers its last answer, as the search asks again."""

    def __init__(self, ranking: Ranking, context: RankingContext, free: torch.Tensor) -> None:
        self._ranking, self._context, self._free = ranking, context, free
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(self, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._last and torch.equal(self._last[0], scores) and torch.equal(self._last[1], mask):
            return self._last[2]
        found = standing(scores, mask & self._free, self._ranking, self._context)
        self._last = scores, mask, found
        return found


def _weights(weights: Iterable[float] | None, tasks: tuple[str, ...]) -> torch.Tensor:
    if weights is None:
        return torch.ones(len(tasks), dtype=torch.float64)
    check_object("weights", weights, Iterable, "a list of numbers")
    values = weights.tolist() if isinstance(weights, torch.Tensor) else list(weights)
    if len(values) != len(tasks) or not all(is_number(w) and w >= 0 for w in values) or not any(values):
        raise OptionError(
            f"weights={shown(values)} do not fit the tasks {list(tasks)}. "
            "Give one finite number >= 0 per task, not all zero."
        )
    return torch.tensor(values, dtype=torch.float64)
