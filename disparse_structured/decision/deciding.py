"""The one place where scores become a decision, and a decision becomes a plan.

Unanimity removes less than each task asked for, so a ratio is not a budget. The search bisects the ratio on
the analytic cost: votes, arbiter, width rules, cost. It never tries a removal on the network itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from disparse_structured.decision.arbiters import Arbiter, Ballot, Unanimous, arbitrate
from disparse_structured.decision.budget.limits import Budget
from disparse_structured.decision.budget.protection import protected_units
from disparse_structured.decision.budget.slack import Fits, give_back, trade
from disparse_structured.decision.budget.widths import Widths
from disparse_structured.decision.plan import Plan, Provenance, PrunableStructure, package_versions
from disparse_structured.decision.votes import (
    PerCostRanking,
    Ranking,
    RankingContext,
    Votes,
    normalise,
    ranking_context,
    standing,
    standings,
    vote,
)
from disparse_structured.errors import BudgetError
from disparse_structured.naming import rule_name

TOLERANCE = 0.01
"""A budget counts as met from below within this share of the dense cost."""

DEFAULT_RANKING: Ranking = PerCostRanking()
"""Best on NYU-v2 at half and at 30 % of the MACs: see benchmarks/nyuv2.py."""

DEFAULT_ARBITER: Arbiter = Unanimous()

_RATIO_STEP = 1e-9


@dataclass(frozen=True, eq=False)
class Decision:
    """Where :func:`decide` ended.

    Args:
        keep: bool ``[units]``, True = kept: what the arbiter decided at ``votes.ratio``, plus the units
            given back for floors, rounding and count constraints, and to use the budget up.
        votes: what each task chose at that ratio.
        budget: the budget that was met.
        arbiter, ranking: the names of the rules in force.
    """

    keep: torch.Tensor
    votes: Votes
    budget: Budget
    arbiter: str
    ranking: str

    def plan(
        self, structure: PrunableStructure, *, criterion: object = None, seed: int | None = None
    ) -> Plan:
        """The decision as a :class:`Plan`; ``criterion`` and ``seed`` are only recorded in it."""
        return Plan.from_keep(
            structure,
            self.keep,
            votes=self.votes.keep,
            budget=self.budget.facts(),
            provenance=Provenance(
                criterion=None if criterion is None else rule_name(criterion),
                arbiter=self.arbiter,
                ranking=self.ranking,
                ratio=self.votes.ratio,
                seed=seed,
                versions=package_versions(),
            ),
        )


def make_plan(
    structure: PrunableStructure,
    scores: torch.Tensor,
    budget: Budget,
    *,
    ranking: Ranking = DEFAULT_RANKING,
    arbiter: Arbiter = DEFAULT_ARBITER,
    weights: Iterable[float] | None = None,
    criterion: object = None,
    seed: int | None = None,
) -> Plan:
    """Each task votes on ``scores``, the arbiter decides, and the decision is written down.

    This is :func:`decide` followed by :meth:`Decision.plan`: arguments and errors are theirs.
    """
    found = decide(structure, scores, budget, ranking=ranking, arbiter=arbiter, weights=weights)
    return found.plan(structure, criterion=criterion, seed=seed)


def decide(
    structure: PrunableStructure,
    scores: torch.Tensor,
    budget: Budget,
    *,
    ranking: Ranking = DEFAULT_RANKING,
    arbiter: Arbiter = DEFAULT_ARBITER,
    weights: Iterable[float] | None = None,
    stay: torch.Tensor | None = None,
    left: torch.Tensor | None = None,
) -> Decision:
    """The common ratio at which the decision meets the budget, with the slack handed back.

    Bisection finds the last ratio over budget and the first within it. Between the two, units come back,
    most salient first by the ranking in force, as far as the budget allows. Where one step (a rounding
    block, a count constraint) is too coarse for :data:`TOLERANCE`, other groups are offered theirs.

    Args:
        structure: groups, reach, count constraints and cost of the dense model.
        scores: ``[tasks, units]``, finite and >= 0.
        weights: one per task, >= 0, for arbiters that use them; ones by default.
        stay: bool ``[units]``; nobody may vote on units that are True.
        left: bool ``[units]``; what an earlier search has left. Units that are False go before all others,
            and a unit costs what it costs in the network that is left.

    Raises:
        BudgetError: the budget is no less than the dense cost, or cannot be met (says how far it can go).
        PatternError: a protected pattern matches nothing.
        PlanError: scores, ranking or arbiter do not return what they must.
    """
    cost = structure.cost.macs if budget.kind == "macs" else structure.cost.parameters
    dense = float(cost(torch.ones(structure.reach.shape[1], dtype=torch.bool)))
    target = budget.target(dense)
    free = _free(structure, budget)
    if stay is not None:
        free &= ~stay
    if left is not None:
        scores = scores.masked_fill(~left, 0.0)
    unit_cost = torch.as_tensor(structure.cost.unit_cost(budget.kind, left)).to("cpu", torch.float64)
    context = ranking_context(structure.groups, unit_cost)
    shares = normalise(scores, structure.reach, structure.tasks)
    own = structure.reach & free
    standing_of_tasks = standings(shares, own, ranking, context)
    importance = _importance(shares, structure.reach, own.any(dim=0), ranking, context)
    widths = Widths.of(structure.groups, structure.constraints, budget, structure.reach, importance)
    rerank = _Rerank(ranking, context, free)
    task_weights = _weights(weights, structure.tasks)
    damage = scores.detach().to("cpu", torch.float64).masked_fill(~structure.reach, 0.0)

    def votes_at(ratio: float) -> Votes:
        return vote(standing_of_tasks, own, ratio)

    def decision_at(ratio: float) -> torch.Tensor:
        ballot = Ballot(
            votes=votes_at(ratio).keep,
            reach=structure.reach,
            scores=shares,
            ratio=ratio,
            rerank=rerank,
            weights=task_weights,
            damage=damage,
            tasks=structure.tasks,
        )
        return arbitrate(arbiter, ballot) | ~free

    def decision(keep: torch.Tensor, ratio: float) -> Decision:
        return Decision(keep, votes_at(ratio), budget, rule_name(arbiter), rule_name(ranking))

    low, high = 0.0, 1.0
    over = widths.settle(decision_at(low))
    if cost(over) <= target:
        return decision(over, low)
    last = decision_at(high)
    within = widths.settle(last)
    if cost(within) > target:
        raise BudgetError(_unreachable(structure, budget, last, dense, importance))
    while high - low > _RATIO_STEP and int((over ^ within).sum()) > 1:
        ratio = (low + high) / 2
        settled = widths.settle(decision_at(ratio))
        if cost(settled) <= target:
            high, within = ratio, settled
        else:
            low, over = ratio, settled
    fits = Fits(cost, target, TOLERANCE * dense)
    asked = own.any(dim=0)
    kept = give_back(within, over, asked, widths, context.group, fits)
    if not fits.closely(kept):
        kept = trade(kept, ~last & asked, widths, fits)
    return decision(kept, high)


def smallest(structure: PrunableStructure, budget: Budget) -> torch.Tensor:
    """Bool ``[units]``: what stays when everything goes that ``budget``'s width rules let go.

    No budget with these rules can go further, whatever the tasks vote. Its limit is not looked at.
    """
    units = torch.arange(structure.reach.shape[1])
    widths = Widths.of(structure.groups, structure.constraints, budget, structure.reach, units)
    return widths.settle(~_free(structure, budget))


def _free(structure: PrunableStructure, budget: Budget) -> torch.Tensor:
    """Bool ``[units]``: what is neither protected nor read only by outputs that no task claims."""
    free = ~protected_units(structure.groups, budget.protected)
    for group in structure.groups:
        if group.name in structure.unclaimed:
            free[group.slice] = False
    return free


class _Rerank:
    """The ranking in force, over what is free; remembers its last answer, as the search asks again."""

    def __init__(self, ranking: Ranking, context: RankingContext, free: torch.Tensor) -> None:
        self._ranking, self._context, self._free = ranking, context, free
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(self, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._last and torch.equal(self._last[0], scores) and torch.equal(self._last[1], mask):
            return self._last[2]
        found = standing(scores, mask & self._free, self._ranking, self._context)
        self._last = scores, mask, found
        return found


def _importance(
    scores: torch.Tensor,
    reach: torch.Tensor,
    asked: torch.Tensor,
    ranking: Ranking,
    context: RankingContext,
) -> torch.Tensor:
    """All units, int64 ``[units]``, most important first: by the ranking in force on the mean score of
    the tasks that reach a unit, then by that score, then by index.
    """
    mean = scores.sum(dim=0) / reach.sum(dim=0).clamp(min=1)
    place = standing(mean, asked, ranking, context).masked_fill(~asked, -1.0)
    order = mean.argsort(descending=True, stable=True)
    return order[place[order].argsort(descending=True, stable=True)]


def _unreachable(
    structure: PrunableStructure, budget: Budget, last: torch.Tensor, dense: float, importance: torch.Tensor
) -> str:
    """How far the budget can go and what holds it, each hold measured by letting go of it alone."""
    cost = structure.cost.macs if budget.kind == "macs" else structure.cost.parameters
    nothing = torch.zeros_like(last)

    def least(loose: Budget, decided: torch.Tensor) -> float:
        free = ~protected_units(structure.groups, loose.protected)
        arguments = (structure.groups, structure.constraints, loose, structure.reach, importance)
        return float(cost(Widths.of(*arguments).settle(decided | ~free)))

    free = ~protected_units(structure.groups, budget.protected)
    reached = least(budget, last)
    replace = dataclasses.replace
    trials = [
        (f"floor={budget.floor:g}", replace(budget, floor=0.0), last),
        (f"min_width={budget.min_width}", replace(budget, min_width=1), last),
        (f"round_to={budget.round_to}", replace(budget, round_to=1), last),
        (f"protected={list(budget.protected)}", replace(budget, protected=()), last & free),
        ("the arbiter", budget, nothing),
    ]
    holds = [
        f"{name} (without it {without / dense:.1%})"
        for name, loose, decided in trials
        if (without := least(loose, decided)) < reached
    ]
    loosest = least(replace(budget, floor=0.0, min_width=1, round_to=1, protected=()), nothing)
    word = budget.word
    target = budget.target(dense)
    asked = f"{budget.kind}={budget.limit:g} ({target:.4g} {word}, {target / dense:.1%} of dense)"
    possible = math.ceil(reached / dense * 1000) / 1000
    remedy = f"Ask for at least {possible:g}, or loosen" if possible < 1 else "Nothing may go at all: loosen"
    hint = (
        " A number above 1 is a count; for a share write a fraction such as 0.5." if budget.limit > 1 else ""
    )
    if structure.graph_only:
        hint += (
            f" Numbers in forward pin slices with {structure.graph_only:.1%} of the parameters; "
            'form="graph" of prune and shrink (--form graph) lets them go.'
        )
    return (
        f"the budget {asked} cannot be met: removing all that may go leaves {reached:.4g} {word}, "
        f"{reached / dense:.1%} of dense. {'It is held by ' + ', '.join(holds) + '. ' if holds else ''}"
        f"{loosest / dense:.1%} stays whatever the settings: pinned layers, count constraints, one unit "
        f"per group. {remedy} what holds it.{hint}"
    )


def _weights(weights: Iterable[float] | None, tasks: tuple[str, ...]) -> torch.Tensor:
    values = [1.0] * len(tasks) if weights is None else [float(weight) for weight in weights]
    if len(values) != len(tasks) or not all(math.isfinite(w) and w >= 0 for w in values) or not any(values):
        raise BudgetError(
            f"weights={values} do not fit the tasks {list(tasks)}. "
            "Give one finite number >= 0 per task, not all zero."
        )
    return torch.tensor(values, dtype=torch.float64)
