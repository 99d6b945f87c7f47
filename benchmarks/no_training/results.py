"""Finished rows over seeds: curves, the best method of a family, and where a curve crosses a level."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.no_training.bench import INPUTS
from benchmarks.no_training.cells import Row
from benchmarks.no_training.methods import FRACTIONS, METHODS, Family
from benchmarks.no_training.networks import NETWORKS

Figure = Callable[[Row], float]
"""A number of a row."""


def mean_deviation(row: Row) -> float:
    return row.mean_deviation


def delta_t(row: Row) -> float:
    return row.delta_t


def worst(row: Row) -> float:
    return row.worst


class Results:
    """Rows with a result, by cell without the seed; ``failed`` are the rows without a result."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.failed: list[Row] = []
        self._rows: dict[tuple[str, str, float, int, int], list[Row]] = defaultdict(list)
        for row in rows:
            cell = row.cell
            if row.error is None:
                self._rows[cell.network, cell.method, cell.macs, cell.inputs, cell.epochs].append(row)
            else:
                self.failed.append(row)

    @property
    def networks(self) -> list[str]:
        """The networks that have rows, in the order of the tables."""
        found = {key[0] for key in self._rows}
        return [network.name for network in NETWORKS if network.name in found]

    def rows(self) -> list[Row]:
        """All rows with a result."""
        return [row for rows in self._rows.values() for row in rows]

    def seeds_of(self, chosen: Callable[[Row], bool]) -> Results:
        """The rows of the seeds that some ``chosen`` row has, to compare like with like."""
        seeds = {row.cell.seed for row in self.rows() if chosen(row)}
        return Results(row for row in self.rows() if row.cell.seed in seeds)

    def items(self) -> list[tuple[tuple[str, str, float, int, int], list[Row]]]:
        """Network, method, MACs, inputs and epochs, with one row for each seed."""
        return sorted(self._rows.items())

    @staticmethod
    def methods(*families: Family) -> list[str]:
        """The names of these families, in the order of the tables."""
        return [name for name, method in METHODS.items() if method.family in families]

    def at(
        self, network: str, method: str, macs: float, inputs: int = INPUTS, epochs: int = 0
    ) -> Sequence[Row]:
        """One row for each seed; empty where nothing was run."""
        return self._rows.get((network, method, macs, inputs, epochs), ())

    def values(self, figure: Figure, network: str, method: str, macs: float) -> list[float]:
        """The figure of each seed."""
        return [figure(row) for row in self.at(network, method, macs)]

    def best(
        self,
        figure: Figure,
        network: str,
        families: Sequence[Family],
        macs: float,
        most: bool,
        plain: bool = False,
    ) -> str | None:
        """The method with the highest (``most``) or lowest mean; None if no method was run.

        With ``plain``, only methods that do not re-estimate batch norms.
        """
        means = {
            name: statistics.fmean(values)
            for name in self.methods(*families)
            if not (plain and name.endswith("+bn")) and (values := self.values(figure, network, name, macs))
        }
        if not means:
            return None
        return (max if most else min)(means, key=means.__getitem__)

    def curve(self, figure: Figure, network: str, families: Sequence[Family], most: bool) -> list[Point]:
        """The best mean at every share, of whichever method of the families has it there."""
        found = []
        for macs in FRACTIONS:
            name = self.best(figure, network, families, macs, most)
            if name is not None:
                rows = self.at(network, name, macs)
                share = statistics.fmean(row.macs for row in rows)
                found.append(Point(share, statistics.fmean(map(figure, rows)), name))
        return sorted(found, key=lambda point: -point.macs)


@dataclass(frozen=True)
class Point:
    """One mean over seeds: measured share of the MACs, value, and method."""

    macs: float
    value: float
    method: str


@dataclass(frozen=True)
class Crossing:
    """The share of the MACs at which a curve falls below a level; a bound if it never does."""

    macs: float
    is_bound: bool = False

    def __str__(self) -> str:
        return f"{'≤ ' if self.is_bound else ''}{self.macs:.2f}"


def crossing(curve: Sequence[Point], level: float) -> Crossing | None:
    """Where ``curve``, from the dense network's (1, 0) on, first falls below ``level``, linearly between
    points; None for an empty curve.
    """
    before = Point(1.0, 0.0, "dense")
    if not curve:
        return None
    for point in sorted(curve, key=lambda point: -point.macs):
        if point.value < level:
            share = (before.value - level) / (before.value - point.value)
            return Crossing(before.macs + share * (point.macs - before.macs))
        before = point
    return Crossing(before.macs, is_bound=True)
