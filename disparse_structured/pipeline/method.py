"""What a method is: something that decides which units of a network are removed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from disparse_structured.data.batches import ToInputs
from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.arbiters import Arbiter
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import Decision, decide
from disparse_structured.decision.rankings import Ranking
from disparse_structured.errors import BudgetError
from disparse_structured.refit import RefitMethod, refit
from disparse_structured.scoring import Criterion, Saliency
from disparse_structured.structure import Structure

Decided: TypeAlias = tuple[Decision, Saliency]
"""A decision, and the scores that it was made on."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What a method decides on.

    Args:
        model: the dense network. A method leaves it as it is.
        structure: what :func:`~disparse_structured.analyse` read from it.
        data: batches, with labels if there are any. It can be read more than once.
        examples: reads unlabeled examples of one shape from ``data``; called at most once, when a method
            asks for :attr:`calibration`.
        budget: what the result may cost.
        to_inputs: from a batch of ``data`` to the tuple of ``forward``'s arguments.
        max_batches: read at most this many batches of ``data`` for one scoring.
        seed: random seed.
        progress: show progress on standard error (bars on a terminal, occasional lines elsewhere).
        known: what an earlier attempt left for attempts that differ in the limit alone; None where there are
            none.
    """

    model: nn.Module
    structure: Structure
    data: Iterable[Any]
    examples: Callable[[], Calibration]
    budget: Budget
    to_inputs: ToInputs | None = None
    max_batches: int | None = None
    seed: int = 0
    progress: bool = False
    known: dict[str, Any] | None = None

    @functools.cached_property
    def calibration(self) -> Calibration:
        """Unlabeled examples of one shape."""
        return self.examples()

    def with_model(self, model: nn.Module) -> Problem:
        """The same problem for ``model``, the dense network with other weights."""
        return replace(self, model=model, examples=lambda: self.calibration)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns, or returned in an earlier attempt."""
        if self.known is None:
            return compute()
        if name not in self.known:
            self.known[name] = compute()
        return self.known[name]


class Method(Protocol):
    """Decides which units are removed. Any object with this method will do.

    An ``arbiter`` attribute, where there is one, is what ``prune(tolerance=...)`` replaces.
    """

    def decide(self, problem: Problem, /) -> Decided:
        """The decision that meets ``problem.budget``, and the scores it was made on.

        Raises:
            BudgetError: the budget cannot be met.
        """
        ...


@runtime_checkable
class Repeatable(Protocol):
    """A method that decides on scores alone, and can decide again on what an earlier decision left.

    Rounds and stages need one: the network is refit or trained between two decisions.
    """

    @property
    def criterion(self) -> Criterion | str:
        """How units are scored, or a name for it."""
        ...

    @property
    def arbiter(self) -> Arbiter:
        """How the tasks' votes become a decision."""
        ...

    @property
    def ranking(self) -> Ranking:
        """How layers compete within one task's vote."""
        ...

    def score(self, problem: Problem, keep: torch.Tensor | None = None, /) -> Saliency:
        """The scores of ``problem.model``, of which the units of ``keep``, bool ``[units]``, are left."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A method that says how much work it does, for an estimate before the run."""

    def passes(
        self, structure: Structure, calibration: Calibration, scored: int | None, share: float, /
    ) -> float | None:
        """About how many forward passes of one example :meth:`Method.decide` takes; None if unknown.

        Args:
            scored: the number of examples in the data; None if it is not known.
            share: the budget, as a share of the dense cost.
        """
        ...


def scoring_passes(structure: Structure, examples: int) -> float:
    """Passes of one scoring: forward once, backward once for each task."""
    return float(examples * (1 + len(structure.tasks)))


def refit_passes(method: RefitMethod | None, calibration: Calibration) -> float:
    """Passes of one refit: the dense and the masked network on all examples and their shifted copies."""
    return 0.0 if method is None else float(2 * (1 + method.shifts) * calibration.samples)


def vote(
    method: Repeatable,
    structure: Structure,
    scores: torch.Tensor,
    budget: Budget,
    *,
    stay: torch.Tensor | None = None,
    left: torch.Tensor | None = None,
) -> Decision:
    """:func:`~disparse_structured.decision.deciding.decide` by the arbiter and the ranking of ``method``."""
    return decide(
        structure,
        scores,
        budget,
        ranking=method.ranking,
        arbiter=method.arbiter,
        weights=[task.weight for task in structure.task_objects],
        stay=stay,
        left=left,
    )


def rounds_to(share: float) -> int:
    """At least two rounds, and so many that none removes more than half of what is left.

    >>> rounds_to(0.5), rounds_to(0.25), rounds_to(0.1)
    (2, 2, 4)
    """
    return max(2, math.ceil(round(-math.log2(share), 6))) if 0 < share < 1 else 2


def decide_in_rounds(
    method: Repeatable, problem: Problem, rounds: int | None, between: RefitMethod | None
) -> Decided:
    """Decides several times on the way to the budget, each time on scores of what is left.

    The budgets of the rounds are a geometric series, so that each removes the same share of what is there.
    ``between`` refits the network after every round but the last. Without ``rounds``, there are
    :func:`rounds_to` the budget.
    """
    structure, budget = problem.structure, problem.budget
    share = budget.share(structure)
    rounds = rounds_to(share) if rounds is None else rounds

    def before_last() -> tuple[Saliency, torch.Tensor | None]:
        """The scores of what the last round starts with."""
        current, keep = problem, None
        every = torch.ones(structure.units, dtype=torch.bool)
        for number in range(1, rounds + 1):
            saliency = method.score(current, every if keep is None else keep)
            if number == rounds:
                break
            decided = functools.partial(vote, method, structure, saliency.scores, left=keep)
            try:
                keep = decided(replace(budget, limit=share ** (number / rounds))).keep
            except BudgetError:
                decided(budget)  # raises the error for the budget that was requested
                raise
            if between is not None:
                found = refit(problem.model, structure, keep, problem.calibration, method=between)
                current = problem.with_model(found.model)
        return saliency, keep

    saliency, left = problem.once("rounds", before_last)
    return vote(method, structure, saliency.scores, budget, left=left), saliency
