"""One task's loss scaled up or down by 20 while saliency is measured: which plans change?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.harness.views import markdown, spread
from benchmarks.tables.cells import Cell, Row
from benchmarks.tables.problems import FIGURES
from benchmarks.tables.settings import Scale
from benchmarks.tables.views import NOT_RUN, line

METHODS = ("pretrained/disparse", "pretrained/joint-fisher", "pretrained/stock-taylor-global")
FACTORS = (20.0, 1 / 20)
REMOVED = 0.7

TITLE = "Loss scale"
WORDS = (
    "One task's loss is made 20 times louder or quieter while saliency is measured; the dense network, the "
    "data and the fine-tuning (with the losses as they were) are the same. "
    f"−{REMOVED:.0%} MACs. *Same plan*: networks that lose exactly what they lose with balanced losses."
)


def belongs(cell: Cell) -> bool:
    """Whether only this experiment has the cell."""
    return bool(cell.loud)


def cells(scale: Scale, dataset: str) -> list[Cell]:
    """The cells with balanced losses and those with one loud or quiet task, seed by seed."""
    return [cell for seed in range(scale.seeds) for row in _variants(dataset, seed) for cell in row]


def view(scale: Scale, dataset: str, rows: Mapping[Cell, Row]) -> str:
    """ΔT, and how many plans are those of the balanced losses, for each method and scaled task."""
    head = ["losses"]
    for method in METHODS:
        name = method.partition("/")[2]
        head += [f"{name}: ΔT % pruned", f"{name}: ΔT % fine-tuned", f"{name}: same plan"]
    body = []
    for variants in zip(*(_variants(dataset, seed) for seed in range(scale.seeds)), strict=True):
        (first, *_), *_ = variants
        shown = [f"{first.loud} {_times(first.factor)}" if first.loud else "balanced"]
        for column in zip(*variants, strict=True):
            shown += _triple(column, rows)
        body.append(shown)
    return markdown(head, body)


def _variants(dataset: str, seed: int) -> list[list[Cell]]:
    """The rows of the table, each with one cell for each method."""
    loud = [("", 1.0), *((figure.task, factor) for figure in FIGURES[dataset] for factor in FACTORS)]
    return [[Cell(dataset, name, REMOVED, seed, task, factor) for name in METHODS] for task, factor in loud]


def _triple(cells: Sequence[Cell], rows: Mapping[Cell, Row]) -> list[str]:
    found = line(rows, cells)
    if not found.rows:
        return ["failed" if found.errors else NOT_RUN] * 3
    before = [row.delta_before for row in found.rows if row.delta_before is not None]
    after = [row.delta_t for row in found.rows if row.delta_t is not None]
    same = sum(row.plan == _balanced(row.cell, rows) for row in found.rows)
    return [spread(before, 1), spread(after, 1), f"{same}/{len(found.rows)}"]


def _balanced(cell: Cell, rows: Mapping[Cell, Row]) -> str | None:
    row = rows.get(Cell(cell.dataset, cell.method, cell.removed, cell.seed))
    return row.plan if row else None


def _times(factor: float) -> str:
    return f"× {factor:g}" if factor >= 1 else f"÷ {1 / factor:g}"
