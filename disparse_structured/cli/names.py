"""The one table from names on the command line to objects of the library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

from disparse_structured.cli.usage import UsageError, suggestion
from disparse_structured.decision.arbiters import (
    AnyTask,
    Arbiter,
    Majority,
    Minimax,
    Priority,
    Quorum,
    Unanimous,
    WeightedMean,
)
from disparse_structured.decision.rankings import (
    GlobalRanking,
    IsomorphicRanking,
    LayerRanking,
    PerCostRanking,
    Ranking,
)
from disparse_structured.pipeline.compensated import Compensated
from disparse_structured.refit import Affine, BatchNormStatistics, LeastSquares, ModelFolding, RefitMethod
from disparse_structured.scoring import Criterion
from disparse_structured.scoring.criteria import (
    SNIP,
    DiagonalHessian,
    Fisher,
    Learned,
    Magnitude,
    Random,
    Taylor,
)

CRITERIA: Mapping[str, Criterion] = {
    "fisher": Fisher(),
    "taylor": Taylor(),
    "snip": SNIP(),
    "obd": DiagonalHessian(),
    "learned": Learned(),
    "l1": Magnitude(p=1),
    "l2": Magnitude(p=2),
    "random": Random(),
}

SCORINGS: Mapping[str, Criterion | Compensated] = {"foresight": Compensated(), **CRITERIA}

ARBITERS: Mapping[str, Arbiter] = {
    "unanimous": Unanimous(),
    "majority": Majority(),
    "any": AnyTask(),
    "weighted-mean": WeightedMean(),
    "minimax": Minimax(),
    "priority": Priority(),
}

QUORUM = "quorum:K"

RANKINGS: Mapping[str, Ranking] = {
    "global": GlobalRanking(),
    "per-cost": PerCostRanking(),
    "isomorphic": IsomorphicRanking(),
    "layer": LayerRanking(),
}

REFITS: Mapping[str, RefitMethod | None] = {
    "least-squares": LeastSquares(),
    "affine": Affine(),
    "batch-norm": BatchNormStatistics(),
    "fold": ModelFolding(),
    "none": None,
}

Named = TypeVar("Named")


def criterion(name: str) -> Criterion:
    """The criterion called ``name``; raises :class:`UsageError` if there is none."""
    return _named(CRITERIA, name, "criterion")


def scoring(name: str) -> Criterion | Compensated:
    """The criterion called ``name``, or foresight; raises :class:`UsageError` if there is none."""
    return _named(SCORINGS, name, "criterion")


def ranking(name: str) -> Ranking:
    """The ranking called ``name``; raises :class:`UsageError` if there is none."""
    return _named(RANKINGS, name, "ranking")


def refit(name: str) -> RefitMethod | None:
    """The refit called ``name``, None for none; raises :class:`UsageError` if there is no such one."""
    return _named(REFITS, name, "refit")


def arbiter(name: str) -> Arbiter:
    """The arbiter called ``name``, ``quorum:2`` among them; raises :class:`UsageError` if there is none."""
    kind, colon, votes = name.partition(":")
    if kind != "quorum":
        return _named({**ARBITERS, QUORUM: Quorum(1)}, name, "arbiter")
    if not (colon and votes.isdecimal() and int(votes)):
        raise UsageError(f"--arbiter {name!r} states no number of votes. Write quorum:2, for example.")
    return Quorum(int(votes))


def by_task(words: Iterable[str], option: str) -> dict[str, float]:
    """What ``--option depth=0.5`` says, given several times, by task; raises :class:`UsageError`."""
    found: dict[str, float] = {}
    for word in words:
        task, equals, number = word.rpartition("=")
        value = _number(number)
        if not (equals and task) or math.isnan(value):
            raise UsageError(
                f"--{option} {word!r} is no TASK=NUMBER. Write --{option} depth=0.5, for example."
            )
        if task in found:
            raise UsageError(f"--{option} names {task!r} twice. Give one number per task.")
        found[task] = value
    return found


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _named(table: Mapping[str, Named], name: str, what: str) -> Named:
    if name not in table:
        raise UsageError(f"--{what} {name!r} is unknown. {suggestion(name, table, what)}")
    return table[name]
