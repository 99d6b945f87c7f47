"""The parts a plan is made of, and when a list of units is one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from disparse_structured.errors import PlanError
from disparse_structured.report.schemas import PLAN_SCHEMA
from disparse_structured.structure.groups import Kind

Plain = str | int | float | None | tuple[str, ...]


@dataclass(frozen=True)
class GroupPlan:
    """What happens to one channel group.

    Args:
        units: how many units the dense group has.
        removed: the units that are removed, ascending.
        votes: per task that reaches the group, the units it voted to remove, ascending.
    """

    name: str
    kind: Kind
    units: int
    reach: tuple[str, ...]
    removed: tuple[int, ...]
    votes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def kept(self) -> int:
        """How many units are kept."""
        return self.units - len(self.removed)


@dataclass(frozen=True)
class Change:
    """A cost of the dense and of the pruned model, as its cost model predicts it, in ``unit``."""

    before: float
    after: float
    unit: str


@dataclass(frozen=True)
class Provenance:
    """How the plan came about. No timestamps: the same model, data and seed give the same plan.

    Args:
        method: the name of the method that decided, such as ``"DiSparse"``.
        criterion, arbiter, ranking: the rules in force, with their settings.
        ratio: the share of its own units that each task was asked to give up.
    """

    method: str | None = None
    criterion: str | None = None
    arbiter: str | None = None
    ranking: str | None = None
    ratio: float | None = None
    seed: int | None = None
    versions: tuple[tuple[str, str], ...] = ()


def other_schema(found: object) -> str:
    """The message about a plan with schema version ``found``."""
    return (
        f"the plan has schema version {found!r}, but this release reads version {PLAN_SCHEMA}. "
        "Make the plan again, or use the release that wrote it."
    )


def check_indices(name: str, indices: Sequence[int], units: int) -> None:
    """Raise :class:`PlanError` unless ``indices`` are ascending units of group ``name``."""
    wrong = [i for i in indices if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < units]
    if wrong:
        raise PlanError(
            f"group {name!r}: unit {wrong[0]!r} is out of range. It has units 0 to {units - 1}, "
            "as whole numbers, in the dense model's numbering."
        )
    for before, after in itertools.pairwise(indices):
        if after <= before:
            what = "is listed twice" if after == before else f"follows {before}"
            raise PlanError(f"group {name!r}: unit {after} {what}. List each unit once, ascending.")
