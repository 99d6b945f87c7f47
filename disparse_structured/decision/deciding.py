"""The one place where scores become a decision, and a decision becomes a plan.

Unanimity removes less than each task asked for, so a ratio is not a budget. The search bisects the ratio on
the predicted cost: votes, arbiter, width rules, cost. It never tries a removal on the network itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from disparse_structured.checks import check_callable, check_object, check_seed
from disparse_structured.decision.arbiters import Arbiter, Unanimous
from disparse_structured.decision.budget.limits import Budget
from disparse_structured.decision.budget.protection import protected_units
from disparse_structured.decision.budget.search import Bracket, bracket
from disparse_structured.decision.budget.slack import Fits, cheapest, give_back, give_back_free, trade
from disparse_structured.decision.budget.uniform import shared_scores
from disparse_structured.decision.budget.unit_costs import unit_costs
from disparse_structured.decision.budget.unreachable import Unreachable
from disparse_structured.decision.budget.widths import Widths
from disparse_structured.decision.contracts import CostModel, PrunableStructure, check_prunable
from disparse_structured.decision.costs import distinct
from disparse_structured.decision.election import Election
from disparse_structured.decision.plan import Plan, Provenance, package_versions
from disparse_structured.decision.rankings import PerCostRanking, Ranking, ranking_context
from disparse_structured.decision.votes import Votes
from disparse_structured.errors import BudgetError
from disparse_structured.naming import rule_name

TOLERANCE = 0.01
"""A budget counts as met from below within this share of the dense cost."""

DEFAULT_RANKING: Ranking = PerCostRanking()
"""Best on NYU-v2 at half and at 30 % of the MACs: see benchmarks/nyuv2.py."""

DEFAULT_ARBITER: Arbiter = Unanimous()


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
        self,
        structure: PrunableStructure,
        *,
        method: str | None = None,
        criterion: object = None,
        seed: int | None = None,
    ) -> Plan:
        """The decision as a :class:`Plan`; ``method``, ``criterion`` and ``seed`` are only recorded in it.

        Raises:
            OptionError: ``method`` is not a name, or ``seed`` is not a valid seed.
        """
        if method is not None:
            check_object("method", method, str, "a name")
        if seed is not None:
            check_seed(seed)
        return Plan.from_keep(
            structure,
            self.keep,
            votes=self.votes.keep,
            costs=distinct([self.budget.of]),
            budget=self.budget.facts(),
            provenance=Provenance(
                method=method,
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
    method: str | None = None,
    criterion: object = None,
    seed: int | None = None,
) -> Plan:
    """Each task votes on ``scores``, the arbiter decides, and the decision is written down.

    This is :func:`decide` followed by :meth:`Decision.plan`: arguments and errors are theirs.

    >>> import disparse_structured as ds
    >>> from torch import arange, nn, zeros
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> structure = ds.analyse(model, zeros(2, 4), [ds.Task("out", ())])
    >>> plan = make_plan(structure, arange(10.0)[None], Budget(macs=0.5))
    >>> plan.removals
    {'0': (0, 1, 2, 3, 4)}
    >>> plan.costs["macs"]
    Change(before=60.0, after=30.0, unit='MACs')
    """
    found = decide(structure, scores, budget, ranking=ranking, arbiter=arbiter, weights=weights)
    return found.plan(structure, method=method, criterion=criterion, seed=seed)


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
    block, a count constraint, a step of the cost) is too coarse for :data:`TOLERANCE`, other groups are
    offered theirs. Finally, units come back whose removal saves nothing.

    >>> import disparse_structured as ds
    >>> from torch import arange, nn, zeros
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> structure = ds.analyse(model, zeros(2, 4), [ds.Task("out", ())])
    >>> decision = decide(structure, arange(10.0)[None], Budget(parameters=0.65))
    >>> decision.keep.tolist()
    [False, False, False, False, True, True, True, True, True, True]

    Args:
        structure: groups, reach, count constraints and cost of the dense model.
        scores: ``[tasks, units]``, finite and >= 0.
        budget: a limit of any cost. The cost need not fall with every unit.
        ranking: how the layers compete within one task's vote.
        arbiter: how the votes become a decision.
        weights: one per task, >= 0, for arbiters that use them; ones by default.
        stay: bool ``[units]``; units that are True are kept, and no task votes on them.
        left: bool ``[units]``, what an earlier search has kept. Units that are False are removed before all
            others, and a unit costs what it costs in the network that is left.

    Raises:
        BudgetError: the budget is not below the dense cost, or cannot be met (says how far it can go).
        PatternError: a protected pattern matches nothing.
        OptionError: an argument is not what it must be, or a ranking, an arbiter or a cost does not return
            what it must.
    """
    check_prunable(structure)
    check_object("scores", scores, torch.Tensor, "a tensor [tasks, units]", "Pass score(...).scores.")
    _check(budget, arbiter, ranking)
    if left is not None:
        scores = scores.masked_fill(~left, 0.0)
    if budget.uniform:
        scores = shared_scores(scores, structure.groups, structure.tasks)
    free = _free(structure, budget)
    if stay is not None:
        free &= ~stay
    cost = budget.of.on(structure)
    start = torch.ones(structure.reach.shape[1], dtype=torch.bool) if left is None else left
    election = Election.of(
        structure,
        scores,
        free,
        arbiter=arbiter,
        ranking=ranking,
        context=ranking_context(structure.groups, unit_costs(cost, start, structure.groups)),
        weights=weights,
    )
    keep, ratio = _searched(structure, budget, cost, election)
    return Decision(keep, election.votes(ratio), budget, rule_name(arbiter), rule_name(ranking))


def smallest(structure: PrunableStructure, budget: Budget) -> torch.Tensor:
    """Bool ``[units]``: what is kept if everything is removed that ``budget``'s width rules allow.

    Whatever the tasks vote, no decision under these rules is narrower. The limit itself is not read.
    """
    units = torch.arange(structure.reach.shape[1])
    widths = Widths.of(structure.groups, structure.constraints, budget, structure.reach, units)
    return widths.settle(~_free(structure, budget))


def _check(budget: Budget, arbiter: Arbiter, ranking: Ranking) -> None:
    check_object("budget", budget, Budget, "a Budget", "Pass one such as Budget(macs=0.5).")
    check_callable("arbiter", arbiter, 1, "Pass an object such as Unanimous(), or a function of a ballot.")
    check_callable(
        "ranking",
        ranking,
        3,
        "Pass an object such as PerCostRanking(), or a function of scores, mask and context.",
    )


def _free(structure: PrunableStructure, budget: Budget) -> torch.Tensor:
    """Bool ``[units]``: neither protected nor read only by outputs that no task claims."""
    free = ~protected_units(structure.groups, budget.protected)
    for group in structure.groups:
        if group.name in structure.unclaimed:
            free[group.slice] = False
    return free


def _searched(
    structure: PrunableStructure, budget: Budget, cost: CostModel, election: Election
) -> tuple[torch.Tensor, float]:
    """The kept set, bool ``[units]``, that meets the budget, and the ratio of its votes."""
    dense = float(cost.dense)
    fits = Fits(cost.total, budget.target(dense), TOLERANCE * dense)
    importance = election.importance()
    widths = Widths.of(structure.groups, structure.constraints, budget, structure.reach, importance)

    def decided(ratio: float) -> torch.Tensor:
        return widths.settle(election.decision(ratio))

    first, last = decided(0.0), election.decision(1.0)
    if fits(first):
        return first, 0.0
    narrowest = widths.settle(last)
    found = bracket(decided, first, narrowest, fits)
    if found is None:
        within = cheapest(narrowest, election.free, widths, fits.cost)
        if not fits(within):
            least = float(cost.total(within))
            bumpy = least < float(cost.total(narrowest))
            raise BudgetError(Unreachable(structure, budget, cost, last, least, bumpy, importance).message())
        found = Bracket(1.0, within, within)
    return _filled(found, election, widths, fits, ~last), found.ratio


def _filled(
    found: Bracket, election: Election, widths: Widths, fits: Fits, removable: torch.Tensor
) -> torch.Tensor:
    """What fits, with the rest of the budget used up, and without removals that save nothing."""
    asked = election.asked
    kept = give_back(found.within, found.over, asked, widths, fits)
    if not fits.closely(kept):
        kept = trade(kept, removable & asked, widths, fits)
    return give_back_free(kept, asked, widths, fits.cost)
