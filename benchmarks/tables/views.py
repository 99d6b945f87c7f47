"""The tables of methods, from rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.harness.views import markdown, spread
from benchmarks.tables.cells import DENSE, Cell, Row
from benchmarks.tables.problems import FIGURES, TITLES, Figure
from benchmarks.tables.settings import REGIMES, Scale

NOT_RUN = "not run"
DELTA = Figure("", "", "ΔT % ↑", True, 1)


@dataclass(frozen=True)
class Line:
    """One method at one share of removed MACs, over the seeds.

    Args:
        rows: the rows with a result.
        errors: the errors of the others, each once.
        seeds: how many rows there should be.
    """

    rows: tuple[Row, ...]
    errors: tuple[str, ...]
    seeds: int

    def values(self, figure: Figure) -> list[float]:
        """One number a seed; ΔT for :data:`DELTA`."""
        if figure is DELTA:
            return [row.delta_t for row in self.rows if row.delta_t is not None]
        return [row.after[figure.task][figure.metric] for row in self.rows]

    def mean(self, figure: Figure) -> float:
        """NaN without a result."""
        values = self.values(figure)
        return statistics.fmean(values) if values else math.nan


def line(rows: Mapping[Cell, Row], cells: Sequence[Cell]) -> Line:
    """What ``rows`` has for ``cells``: those of one method and share, one for each seed."""
    found = [rows[cell] for cell in cells if cell in rows]
    errors = tuple(dict.fromkeys(row.error for row in found if row.error is not None))
    return Line(tuple(row for row in found if row.error is None), errors, len(cells))


def by_cell(rows: Iterable[Row]) -> dict[Cell, Row]:
    """The rows under their cells."""
    return {row.cell: row for row in rows}


def table(
    scale: Scale, dataset: str, methods: Mapping[str, str], rows: Mapping[Cell, Row], removed: float
) -> str:
    """One data set at one share of removed MACs: methods by headline figures, MACs, parameters and ΔT.

    ``methods`` maps each method of a cell to the name shown, all of one regime. In each column the best mean
    of the pruned networks is bold; the dense network does not compete. Errors are listed below the table.
    """
    figures = (*FIGURES[dataset], DELTA)
    lines = {name: line(rows, _cells(scale, dataset, name, removed)) for name in methods}
    reference = line(rows, _cells(scale, dataset, DENSE, 0.0))
    best = {figure: _best(lines.values(), figure) for figure in figures}
    head = ["method", *(figure.title for figure in figures), "MACs", "parameters", "seeds"]
    body = [_cells_of(DENSE, reference, figures, {}, [])]
    notes: list[str] = []
    body += [_cells_of(methods[name], found, figures, best, notes) for name, found in lines.items()]
    return "\n".join([markdown(head, body), *(f"\n{note}" for note in notes)])


def summary(scale: Scale, dataset: str, methods: Mapping[str, str], rows: Mapping[Cell, Row]) -> str:
    """ΔT of one regime at every share of removed MACs, in one table."""
    shares = sorted(scale.removed)
    lines = {
        name: [line(rows, _cells(scale, dataset, name, removed)) for removed in shares] for name in methods
    }
    best = [_best([found[place] for found in lines.values()], DELTA) for place in range(len(shares))]
    head = ["method", *(f"ΔT % ↑ at −{removed:.0%} MACs" for removed in shares)]
    body = [
        [
            methods[name],
            *(_shown(each, DELTA, best[place], [], methods[name]) for place, each in enumerate(found)),
        ]
        for name, found in lines.items()
    ]
    return markdown(head, body)


def section(
    scale: Scale, dataset: str, regime: str, methods: Mapping[str, str], rows: Mapping[Cell, Row]
) -> str:
    """Heading, summary and the tables of one regime on one data set."""
    parts = [f"### {TITLES[dataset]}, {regime}", summary(scale, dataset, methods, rows)]
    for removed in sorted(scale.removed):
        parts += [f"**{removed:.0%} of the MACs removed**", table(scale, dataset, methods, rows, removed)]
    return "\n\n".join(parts)


def costs(dataset: str, rows: Mapping[Cell, Row]) -> str:
    """The cost of the regimes on one data set: finished networks, the dynamic one's own time, CPU seconds."""
    finished = [row for cell, row in rows.items() if cell.dataset == dataset and row.error is None]
    parts = []
    over = [
        row.macs / (1 - row.cell.removed)
        for row in finished
        if row.macs is not None and row.cell.regime in ("static", "dynamic")
    ]
    if over:
        parts.append(
            f"Networks pruned at initialization or while training end at {min(over):.1%} to {max(over):.1%} "
            f"of their MAC budget ({len(over)} runs)."
        )
    own = [
        row.seconds["companion"] / row.seconds["train"]
        for row in finished
        if row.cell.regime == "dynamic" and row.seconds.get("train")
    ]
    if own:
        parts.append(
            f"The dynamic regime's own steps take {statistics.fmean(own):.1%} of the training time on "
            f"average and {max(own):.1%} at most ({len(own)} runs)."
        )
    for regime in (DENSE, *REGIMES):
        spent = [row.seconds["cpu"] for row in finished if row.cell.regime == regime and row.seconds]
        if spent:
            parts.append(f"CPU seconds of one {regime} run: {statistics.fmean(spent):.0f}.")
    return " ".join(parts)


def _cells(scale: Scale, dataset: str, method: str, removed: float) -> list[Cell]:
    return [Cell(dataset, method, removed, seed) for seed in range(scale.seeds)]


def _cells_of(
    name: str, found: Line, figures: Sequence[Figure], best: Mapping[Figure, float], notes: list[str]
) -> list[str]:
    shown = [_shown(found, figure, best.get(figure, math.nan), notes, name) for figure in figures]
    costs = [[row.macs for row in found.rows], [row.parameters for row in found.rows]]
    shares = [f"{statistics.fmean([v for v in values if v is not None]):.1%}" for values in costs if values]
    return [name, *shown, *(shares or ["", ""]), f"{len(found.rows)}/{found.seeds}"]


def _shown(found: Line, figure: Figure, best: float, notes: list[str], name: str) -> str:
    for error in found.errors:
        note = f"Failed: {name}: {' '.join(error.split())}"
        if note not in notes:
            notes.append(note)
    values = found.values(figure)
    if not values:
        return "failed" if found.errors else NOT_RUN
    text = spread(values, figure.digits)
    if round(found.mean(figure), figure.digits) == round(best, figure.digits):
        text = f"**{text}**"
    return f"{text} (others failed)" if found.errors and figure is DELTA else text


def _best(lines: Iterable[Line], figure: Figure) -> float:
    """The best mean; NaN where fewer than two methods have one, so that there is nothing to compare."""
    means = [mean for mean in (each.mean(figure) for each in lines) if math.isfinite(mean)]
    if len(means) < 2:
        return math.nan
    return max(means) if figure.higher_is_better else min(means)
