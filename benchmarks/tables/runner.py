"""Which cells of a scale are run, in processes of their own, and where their rows are kept."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.baselines import METHODS, VARIANTS, Method
from benchmarks.harness.row import Shelf, reason
from benchmarks.harness.runner import Progress, Say, aloud, processes, remaining, run_all
from benchmarks.tables import experiment
from benchmarks.tables.cells import DENSE, Cell, Row, settings_hash
from benchmarks.tables.problems import problem
from benchmarks.tables.settings import REGIMES, Scale

KNOWN = {**METHODS, **VARIANTS}


@dataclass(frozen=True)
class Workspace:
    """Where a scale is run.

    Args:
        scale: what to run.
        folder: where the shelves are, one for each data set.
        cache: where dense networks are kept.
        jobs: how many processes, of one torch thread each; with 1, everything runs in this process.
        device: where networks compute.
        retry: whether failed cells are run again.
    """

    scale: Scale
    folder: Path
    cache: Path
    jobs: int = 2
    device: str = "cpu"
    retry: bool = False

    def bench(self, cell: Cell) -> experiment.Bench:
        """What the cell is run with."""
        return experiment.Bench(self.scale.setup(cell.dataset), self.cache, self.device)

    def shelf(self, dataset: str) -> Shelf[Row]:
        """The rows of one data set."""
        return Shelf(self.folder / f"{self.scale.name}-{dataset}.jsonl", Row, Cell)

    def is_current(self, row: Row) -> bool:
        """Whether the row is of the present settings."""
        cell = row.cell
        setups = {setup.dataset: setup for setup in self.scale.setups}
        if cell.dataset not in setups or not (cell.method == DENSE or cell.method in KNOWN):
            return False
        told = experiment.description(_method(cell))
        return row.settings == settings_hash(cell, setups[cell.dataset], told)

    def rows(self) -> tuple[list[Row], int]:
        """All current rows, and how many others there are; raises :class:`RowError`."""
        found = [row for setup in self.scale.setups for row in self.shelf(setup.dataset).rows()]
        current = [row for row in found if self.is_current(row)]
        return current, len(found) - len(current)

    def finished(self) -> set[Cell]:
        """The cells that need not be run again; raises :class:`RowError`."""
        return {row.cell for row in self.rows()[0] if not (self.retry and row.error)}


def table_cells(scale: Scale) -> list[Cell]:
    """All cells of the tables, most useful first: seed by seed, ratio by ratio, method by method."""
    names = scale.methods or tuple(METHODS)
    ordered = sorted(names, key=lambda name: REGIMES.index(METHODS[name].regime))
    return [
        Cell(setup.dataset, name, removed, seed)
        for seed in range(scale.seeds)
        for removed in scale.removed
        for name in ordered
        for setup in scale.setups
    ]


def work(space: Workspace, cells: Sequence[Cell], say: Say = aloud) -> int:
    """Runs the cells that are not finished, dense networks first; returns how many were run.

    A cell that raises leaves a row with the error. The run can be interrupted at any time and repeated.

    Raises:
        DataError: data is missing; nothing has been run then.
        RowError: a shelf is damaged.
    """
    finished = space.finished()
    dense = list(dict.fromkeys(cell.dense for cell in cells))
    todo = remaining(cells, finished.__contains__)
    needed = {cell.dense for cell in todo}
    first = [cell for cell in dense if cell not in finished or (cell in needed and _lacks(space, cell))]
    progress = Progress(len(first) + len(todo), len(dense) + len(cells), space.jobs, say)
    if not first + todo:
        return 0
    for setup in space.scale.setups:
        problem(setup)

    def announce(result: tuple[Cell, float, str | None]) -> None:
        cell, seconds, error = result
        progress.finished(cell.label, seconds, f"FAILED: {error}" if error else "")

    with processes(space.jobs) as pool:
        for batch in (first, todo):  # all dense networks are there before anything needs them
            run_all(pool, partial(one, space), batch, announce)
    return len(first) + len(todo)


def one(space: Workspace, cell: Cell) -> tuple[Cell, float, str | None]:
    """Runs one cell and keeps its row; returns the seconds it took, and the error that it ended with."""
    started = time.perf_counter()
    method = _method(cell)
    bench = space.bench(cell)
    try:
        row = experiment.run(bench, cell, method)
    except Exception as error:
        traceback.print_exc()
        row = Row(cell, error=reason(error), **experiment.facts(bench, cell, method))
    space.shelf(cell.dataset).put(row)
    return cell, time.perf_counter() - started, row.error


def _method(cell: Cell) -> Method | None:
    return None if cell.method == DENSE else KNOWN[cell.method]


def _lacks(space: Workspace, cell: Cell) -> bool:
    return not experiment.weights_file(space.bench(cell), cell.seed).is_file()
