"""Whether two scales rank the methods alike."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scipy.stats import spearmanr

from benchmarks.harness.views import markdown
from benchmarks.tables.cells import DENSE, Row

Place = tuple[str, str, float]
"""Data set, regime, share of MACs removed."""


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of the methods' mean ΔT at two scales, where both have rows.

    ``rho`` is NaN where one scale ranks all methods the same; ``p`` is for the two-sided test.
    """

    place: Place
    methods: tuple[str, ...]
    rho: float
    p: float


def agreement(one: Iterable[Row], other: Iterable[Row]) -> list[Agreement]:
    """Per data set, regime and share of removed MACs with three methods or more at both scales."""
    first, second = _means(one), _means(other)
    found = []
    for place in sorted(first.keys() & second.keys()):
        methods = sorted(first[place].keys() & second[place].keys())
        if len(methods) < 3:
            continue
        result = spearmanr([first[place][m] for m in methods], [second[place][m] for m in methods])
        found.append(Agreement(place, tuple(methods), float(result.statistic), float(result.pvalue)))
    return found


def view(found: Iterable[Agreement], one: str, other: str) -> str:
    """A Markdown table, or a line that says that there is nothing to compare."""
    body = [
        [
            f"{dataset}, {regime}, −{removed:.0%} MACs",
            str(len(each.methods)),
            f"{each.rho:.2f}",
            f"{each.p:.3f}",
        ]
        for each in found
        for dataset, regime, removed in [each.place]
    ]
    if not body:
        return f"No three methods have rows both at the scale {one} and at the scale {other}: not run."
    return markdown([f"{one} against {other}", "methods", "Spearman's ρ of mean ΔT", "p"], body)


def _means(rows: Iterable[Row]) -> Mapping[Place, Mapping[str, float]]:
    values: dict[Place, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cell = row.cell
        if row.delta_t is not None and cell.method != DENSE and not (cell.loud or cell.trunk):
            values[cell.dataset, cell.regime, cell.removed][cell.name].append(row.delta_t)
    return {
        place: {name: statistics.fmean(each) for name, each in by_name.items()}
        for place, by_name in values.items()
    }
