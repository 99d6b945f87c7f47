"""What else was tried for DiSparse itself: how layers compete, who arbitrates, what is measured."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.baselines import METHODS, VARIANTS
from benchmarks.tables.cells import Cell, Row
from benchmarks.tables.settings import REGIMES, Scale
from benchmarks.tables.views import DELTA, NOT_RUN, line, markdown, spread

REMOVED = 0.7


def cells(scale: Scale, dataset: str) -> list[Cell]:
    """Every variant at :data:`REMOVED`, seed by seed."""
    return [Cell(dataset, name, REMOVED, seed) for seed in range(scale.seeds) for name in VARIANTS]


def view(scale: Scale, dataset: str, rows: Mapping[Cell, Row]) -> str:
    """ΔT of each variant beside the rows of the tables that are ours."""
    body = []
    for regime in REGIMES:
        tables = [name for name in METHODS if name.startswith(f"{regime}/disparse")]
        for name in [*tables, *(name for name in VARIANTS if name.startswith(f"{regime}/"))]:
            found = line(rows, [Cell(dataset, name, REMOVED, seed) for seed in range(scale.seeds)])
            shown = spread(found.values(DELTA), DELTA.digits) if found.rows else NOT_RUN
            body.append([regime, name.partition("/")[2], shown])
    return markdown(["regime", "variant", DELTA.title], body)
