"""The one table from names on the command line to objects of the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from disparse_structured.arbitration import AnyTask, Arbiter, Majority, Quorum, Unanimous, WeightedMean
from disparse_structured.cli.usage import UsageError, suggestion
from disparse_structured.saliency import (
    SNIP,
    Criterion,
    DiagonalHessian,
    Fisher,
    Learned,
    Magnitude,
    Random,
    Taylor,
)
from disparse_structured.votes import (
    GlobalRanking,
    IsomorphicRanking,
    LayerRanking,
    PerCostRanking,
    Ranking,
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

ARBITERS: Mapping[str, Arbiter] = {
    "unanimous": Unanimous(),
    "majority": Majority(),
    "any": AnyTask(),
    "weighted-mean": WeightedMean(),
}

QUORUM = "quorum:K"

RANKINGS: Mapping[str, Ranking] = {
    "global": GlobalRanking(),
    "per-cost": PerCostRanking(),
    "isomorphic": IsomorphicRanking(),
    "layer": LayerRanking(),
}

Named = TypeVar("Named")


def criterion(name: str) -> Criterion:
    """The criterion called ``name``; raises :class:`UsageError` if there is none."""
    return _named(CRITERIA, name, "criterion")


def ranking(name: str) -> Ranking:
    """The ranking called ``name``; raises :class:`UsageError` if there is none."""
    return _named(RANKINGS, name, "ranking")


def arbiter(name: str) -> Arbiter:
    """The arbiter called ``name``, ``quorum:2`` among them; raises :class:`UsageError` if there is none."""
    kind, colon, votes = name.partition(":")
    if kind != "quorum":
        return _named({**ARBITERS, QUORUM: Quorum(1)}, name, "arbiter")
    if not (colon and votes.isdecimal() and int(votes)):
        raise UsageError(f"--arbiter {name!r} states no number of votes. Write quorum:2, for example.")
    return Quorum(int(votes))


def _named(table: Mapping[str, Named], name: str, what: str) -> Named:
    if name not in table:
        raise UsageError(f"--{what} {name!r} is unknown. {suggestion(name, table, what)}")
    return table[name]
