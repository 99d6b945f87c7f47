"""A budget and limits at once: tries that are measured, each with limits that the last one taught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from disparse_structured.decision.arbiters import Arbiter, Priority, Tolerance
from disparse_structured.decision.arbiters.by_name import by_task
from disparse_structured.decision.budget import Budget
from disparse_structured.errors import BudgetError
from disparse_structured.naming import rule_name
from disparse_structured.refit import RefitMethod
from disparse_structured.structure import Structure
from disparse_structured.tasks import Task

TRIES = 4
"""How often a decision is made and measured before the limits count as out of reach."""

_DAMPED = 0.25
_MARGIN = 0.97

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Try(Generic[Result]):
    """What one decision led to.

    Args:
        result: whatever the caller made of it.
        predicted, measured: by task the relative deviation of its output from the dense one's.
    """

    result: Result
    predicted: Mapping[str, float]
    measured: Mapping[str, float]


def within(
    limits: Mapping[str, float],
    attempt: Callable[[Arbiter, Budget], Try[Result]],
    structure: Structure,
    budget: Budget,
) -> Try[Result]:
    """The first of at most :data:`TRIES` attempts in which no task passes its limit.

    What is predicted is not what is measured in the end. After each attempt, tasks over their limit are given
    a stricter one: what was predicted, less in proportion as too much was measured, at most by four. The last
    attempt takes the plain sum of all damage, as an order of units that all tasks share is the safest to
    predict.

    Raises:
        BudgetError: there is none; says which tasks are in the way, how close they came, and whether they
            would stay within their limits at a cost halfway to the dense one.
    """
    strict = dict(limits)
    tries: list[Mapping[str, float]] = []
    while len(tries) < TRIES:
        found = attempt(Tolerance(strict) if len(tries) < TRIES - 1 else Priority(), budget)
        if _used(found.measured, limits) <= 1:
            return found
        tries.append(found.measured)
        for name, limit in limits.items():
            if found.measured[name] > limit:
                allowed = min(strict[name], found.predicted[name] or strict[name])
                strict[name] = allowed * max(_MARGIN * limit / found.measured[name], _DAMPED)
    easier = _halfway(budget, structure)
    there = attempt(Tolerance(limits), easier).measured
    if _used(there, limits) > 1:
        there = min(there, attempt(Priority(), easier).measured, key=lambda each: _used(each, limits))
    raise BudgetError(_blocked(limits, tries, budget, easier, there))


def _used(measured: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """The largest share of a limit that is used; above 1 it is passed."""
    return max(measured[name] / limit for name, limit in limits.items())


def checked_limits(
    tolerance: Mapping[str, float], tasks: Sequence[Task], arbiter: Arbiter | None, refit: RefitMethod | None
) -> Mapping[str, float]:
    """``tolerance`` as the limits of a :class:`~disparse_structured.decision.arbiters.Tolerance`.

    Raises:
        BudgetError: they are none, there is another arbiter, or nothing that measures.
        TaskError: a limit is for a task that there is not.
    """
    try:
        limits = Tolerance(tolerance).limits
    except ValueError as error:
        raise BudgetError(f"tolerance={tolerance!r} will not do. {error}") from error
    by_task(limits, tuple(task.name for task in tasks), 1.0, "tolerance")
    if arbiter is not None:
        raise BudgetError(
            f"tolerance= decides by the limits, arbiter={rule_name(arbiter)} by something else. "
            "Leave one out."
        )
    if refit is None:
        raise BudgetError(
            "tolerance= needs a refit, which measures how far the outputs are. Affine() is a quick one."
        )
    return limits


def _halfway(budget: Budget, structure: Structure) -> Budget:
    dense = budget.of.on(structure).dense
    return dataclasses.replace(budget, limit=(1 + budget.target(dense) / dense) / 2)


def _blocked(
    limits: Mapping[str, float],
    tries: Sequence[Mapping[str, float]],
    budget: Budget,
    easier: Budget,
    there: Mapping[str, float],
) -> str:
    best = min(tries, key=lambda each: _used(each, limits))
    blocking = [name for name, limit in limits.items() if best[name] > limit]
    holds = []
    for name in blocking:
        closest = min(each[name] for each in tries)
        at_others = f", {closest:.3g} at the others' cost" if closest < best[name] else ""
        holds.append(f"{name!r} deviates by {best[name]:.3g}{at_others} (limit {limits[name]:g})")
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
