"""A budget and limits on deviations at once: attempts that are measured, each a little stricter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disparse_structured.decision.arbiters import Arbiter, Priority, Tolerance
from disparse_structured.decision.arbiters.by_name import by_task
from disparse_structured.decision.budget import Budget
from disparse_structured.errors import BudgetError, OptionError
from disparse_structured.naming import rule_name
from disparse_structured.pipeline.method import Method, Problem
from disparse_structured.pipeline.refitting import Execution, Outcome
from disparse_structured.refit import RefitMethod
from disparse_structured.scoring import Saliency
from disparse_structured.structure import Structure

TRIES = 4
"""How often a decision is made and measured before the limits count as out of reach."""

_DAMPED = 0.25
_MARGIN = 0.97


@dataclass(frozen=True, eq=False)
class _Try:
    """What one decision led to.

    ``predicted`` and ``measured`` give, by task, the relative deviation of its output from the dense one's.
    If columns of one size moved further than the whole output, their deviation is the one measured.
    """

    saliency: Saliency
    outcome: Outcome
    predicted: Mapping[str, float]

    @property
    def measured(self) -> Mapping[str, float]:
        return self.outcome.deviation.judged

    def where(self, task: str) -> str:
        """Which columns of the task's output were judged, in words; empty if it was the whole output."""
        deviation = self.outcome.deviation
        whole = deviation.judged[task] == deviation.final[task]
        return "" if whole else f" in {deviation.columns[task].place}"


def within_limits(
    limits: Mapping[str, float], problem: Problem, method: Method, execute: Execution
) -> tuple[Saliency, Outcome]:
    """The first of at most :data:`TRIES` attempts in which no task passes its limit.

    What is predicted is not what is measured in the end. After each attempt, tasks over their limit are given
    a stricter one: what was predicted, reduced in proportion to the excess, at most by four. The last attempt
    takes the plain sum of all damage, since an order of units that all tasks share is the safest to predict.

    Raises:
        BudgetError: no attempt succeeded; says which tasks are in the way, how close they came, and whether
            they would stay within their limits at a cost halfway to the dense one.
    """

    def attempt(arbiter: Arbiter, budget: Budget) -> _Try:
        return _attempt(
            _with_arbiter(method, arbiter), dataclasses.replace(problem, budget=budget, known=None), execute
        )

    strict = dict(limits)
    tries: list[_Try] = []
    while len(tries) < TRIES:
        last = len(tries) == TRIES - 1
        found = attempt(Priority() if last else Tolerance(strict), problem.budget)
        if _used(found.measured, limits) <= 1:
            return found.saliency, found.outcome
        tries.append(found)
        for name, limit in limits.items():
            if found.measured[name] > limit:
                allowed = min(strict[name], found.predicted[name] or strict[name])
                strict[name] = allowed * max(_MARGIN * limit / found.measured[name], _DAMPED)
    raise BudgetError(_explained(limits, tries, problem, attempt))


def _attempt(method: Method, problem: Problem, execute: Execution) -> _Try:
    structure = problem.structure
    decision, saliency = method.decide(problem)
    plan = decision.plan(
        structure, method=type(method).__name__, criterion=saliency.criterion, seed=problem.seed
    )
    outcome = execute(plan)
    predicted = (saliency.scores * ~plan.keep(structure)).sum(dim=1).sqrt().tolist()
    return _Try(saliency, outcome, dict(zip(structure.tasks, predicted, strict=True)))


def _with_arbiter(method: Method, arbiter: Arbiter) -> Method:
    changed: Any = dataclasses.replace(method, arbiter=arbiter)  # type: ignore[type-var]  # see check_limits
    made: Method = changed
    return made


def _explained(
    limits: Mapping[str, float],
    tries: Sequence[_Try],
    problem: Problem,
    attempt: Callable[[Arbiter, Budget], _Try],
) -> str:
    """Why the limits are out of reach, after one more measurement at an easier budget."""
    easier = _halfway(problem.budget, problem.structure)
    there = attempt(Tolerance(limits), easier).measured
    if _used(there, limits) > 1:
        there = min(there, attempt(Priority(), easier).measured, key=lambda each: _used(each, limits))
    return _blocked(limits, tries, problem.budget, easier, there)


def _used(measured: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """The largest share of a limit that is used; above 1 it is passed."""
    return max(measured[name] / limit for name, limit in limits.items())


def check_limits(
    tolerance: Mapping[str, float], tasks: tuple[str, ...], method: Method, refit: RefitMethod | None
) -> Mapping[str, float]:
    """``tolerance`` as the limits of a :class:`~disparse_structured.decision.arbiters.Tolerance`.

    Raises:
        OptionError: the limits are malformed, another arbiter was chosen, or there is no refit.
        TaskError: a limit names an unknown task.
    """
    try:
        limits = Tolerance(tolerance).limits
    except ValueError as error:
        raise OptionError(f"invalid tolerance={tolerance!r}: {error}") from error
    by_task(limits, tasks, 1.0, "tolerance")
    fields = _fields(method)
    if "arbiter" not in fields:
        raise OptionError(
            f"tolerance= replaces the arbiter of the method, and {rule_name(method)} has none. "
            "Use Compensated() or DiSparse()."
        )
    arbiter = vars(method)["arbiter"]
    if arbiter != fields["arbiter"].default:
        raise OptionError(
            f"tolerance= decides by the limits, and arbiter={rule_name(arbiter)} by something else. "
            "Leave one of the two out."
        )
    if refit is None:
        raise OptionError(
            "tolerance= needs a refit, which brings the outputs close to the dense network's. "
            "Affine() is a quick one."
        )
    return limits


def _fields(method: object) -> dict[str, dataclasses.Field[Any]]:
    if not dataclasses.is_dataclass(method):
        return {}
    return {field.name: field for field in dataclasses.fields(method)}


def _halfway(budget: Budget, structure: Structure) -> Budget:
    return dataclasses.replace(budget, limit=(1 + budget.share(structure)) / 2)


def _blocked(
    limits: Mapping[str, float],
    tries: Sequence[_Try],
    budget: Budget,
    easier: Budget,
    there: Mapping[str, float],
) -> str:
    nearest = min(tries, key=lambda each: _used(each.measured, limits))
    best = nearest.measured
    blocking = [name for name, limit in limits.items() if best[name] > limit]
    holds = []
    for name in blocking:
        closest = min(each.measured[name] for each in tries)
        at_others = f", {closest:.3g} at the others' cost" if closest < best[name] else ""
        moved = f"{name!r} deviates by {best[name]:.3g}{nearest.where(name)}"
        holds.append(f"{moved}{at_others} (limit {limits[name]:g})")
    rest = [f"{name!r} {best[name]:.3g}" for name in limits if name not in blocking]
    far = ", ".join(f"{name!r} {there[name]:.3g}" for name in limits)
    outcome = "all limits hold" if _used(there, limits) <= 1 else "they are passed too"
    allow = ", ".join(f"{name}={1.05 * best[name]:.2g}" for name in blocking)
    return (
        f"{budget} cannot be met within the tolerance. In the best of {len(tries)} "
        f"tries {'; '.join(holds)}{'; within its limit ' + ', '.join(rest) if rest else ''}. "
        f"At {easier.of.name}={easier.limit:.3g} {outcome}: {far}. "
        f"Ask for more {budget.of.unit}, or allow {allow}."
    )
