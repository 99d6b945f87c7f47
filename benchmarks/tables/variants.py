"""Variants of DiSparse itself that were tried, and what shows where their results come from."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.baselines import METHODS, VARIANTS
from benchmarks.harness.views import markdown, spread
from benchmarks.tables.cells import Cell, Row
from benchmarks.tables.settings import REGIMES, Scale
from benchmarks.tables.views import DELTA, NOT_RUN, line

REMOVED = 0.7

TITLE = "What else was tried"
WORDS = (
    f"DiSparse's own rows with other rankings, arbiters and criteria, −{REMOVED:.0%} MACs; those of the "
    "tables are unanimous and per cost, by Fisher on trained networks and by SNIP at initialization. "
    "disparse-shuffled has the widths of static/disparse and random-uniform those of "
    "static/magnitude-uniform, but within each group the units are drawn at random. disparse-log "
    "takes each group's share of a task's scores, and the widths with the largest sum of share times "
    "log(width). joint-early is disparse-early with one joint loss in place of the votes."
)


def belongs(cell: Cell) -> bool:
    """Whether only this experiment has the cell."""
    return cell.method in VARIANTS


def cells(scale: Scale, dataset: str) -> list[Cell]:
    """Every variant at :data:`REMOVED`, seed by seed."""
    return [Cell(dataset, name, REMOVED, seed) for seed in range(scale.seeds) for name in VARIANTS]


def view(scale: Scale, dataset: str, rows: Mapping[Cell, Row]) -> str:
    """ΔT of each variant, beside our own rows of the tables."""
    body = []
    for regime in REGIMES:
        tables = [name for name in METHODS if name.startswith(f"{regime}/disparse")]
        for name in [*tables, *(name for name in VARIANTS if name.startswith(f"{regime}/"))]:
            found = line(rows, [Cell(dataset, name, REMOVED, seed) for seed in range(scale.seeds)])
            shown = spread(found.values(DELTA), DELTA.digits) if found.rows else NOT_RUN
            body.append([regime, name.partition("/")[2], shown])
    return markdown(["regime", "variant", DELTA.title], body)
