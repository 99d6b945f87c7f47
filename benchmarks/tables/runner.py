"""Works off cells in processes of its own; what is finished stays, and is not done again."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path

import torch

from benchmarks.baselines import METHODS, VARIANTS, Method
from benchmarks.rows import RowError
from benchmarks.tables import experiment
from benchmarks.tables.cells import DENSE, Cell, Row, all_rows, read, settings_hash
from benchmarks.tables.problems import problem
from benchmarks.tables.settings import REGIMES, Scale

Say = Callable[[str], None]

KNOWN = {**METHODS, **VARIANTS}


@dataclass(frozen=True)
class Plant:
    """Where a scale is run.

    Args:
        scale: what to run.
        folder: rows go below it.
        cache: dense networks go there.
        jobs: processes, of one torch thread each.
        device: of the networks.
        retry: run cells again that failed.
    """

    scale: Scale
    folder: Path
    cache: Path
    jobs: int = 2
    device: str = "cpu"
    retry: bool = False

    def bench(self, cell: Cell) -> experiment.Bench:
        return experiment.Bench(self.scale.setup(cell.dataset), self.cache, self.device)

    def is_current(self, row: Row) -> bool:
        """Whether the row is of the settings as they are now."""
        cell = row.cell
        setups = {setup.dataset: setup for setup in self.scale.setups}
        if cell.dataset not in setups or not (cell.method == DENSE or cell.method in KNOWN):
            return False
        told = experiment.description(_method(cell))
        return row.settings == settings_hash(cell, setups[cell.dataset], told)

    def is_done(self, cell: Cell) -> bool:
        """Whether there is a current row of this cell."""
        path = self.folder / cell.file
        try:
            row = read(path) if path.is_file() else None
        except RowError:
            return False  # it is written anew
        return row is not None and self.is_current(row) and not (self.retry and row.error)

    def rows(self) -> tuple[list[Row], int]:
        """All current rows, and how many others there are; raises :class:`RowError`."""
        found = list(all_rows(self.folder))
        current = [row for row in found if self.is_current(row)]
        return current, len(found) - len(current)


def aloud(text: str) -> None:
    """Prints a line at once, also into a file or a pipe."""
    print(text, flush=True)


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


def work(plant: Plant, cells: Sequence[Cell], say: Say = aloud) -> int:
    """Runs what is not done, dense networks first; how many cells were run.

    A cell that raises leaves a row with the error. May be killed at any time and called again. Data that
    is not there raises :class:`benchmarks.data.DataError` before anything is run.
    """
    dense = list(dict.fromkeys(cell.dense for cell in cells))
    todo = [cell for cell in cells if not plant.is_done(cell)]
    needed = {cell.dense for cell in todo}
    first = [cell for cell in dense if not plant.is_done(cell) or (cell in needed and _lacks(plant, cell))]
    total = len(first) + len(todo)
    say(f"{plant.scale.name}: {total} of {len(dense) + len(cells)} cells to run, {plant.jobs} at a time")
    if not total:
        return 0
    for setup in plant.scale.setups:
        problem(setup)
    started = time.perf_counter()
    done = 0

    def announce(cell: Cell, seconds: float, error: str | None) -> None:
        nonlocal done
        done += 1
        left = (time.perf_counter() - started) / done * (total - done)
        failed = f"  FAILED: {error}" if error else ""
        say(f"[{done}/{total}] {cell}  {seconds:.0f} s, {left / 60:.0f} min left{failed}")

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(plant.jobs, context, prepare) as pool:
        try:
            for batch in (first, todo):  # all dense networks are there before anything needs them
                _drain(pool, plant, batch, announce)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return total


def one(plant: Plant, cell: Cell) -> tuple[Cell, float, str | None]:
    """Runs one cell and keeps its row; the seconds it took, and the error that it ended with."""
    started = time.perf_counter()
    method = _method(cell)
    bench = plant.bench(cell)
    try:
        row = experiment.run(bench, cell, method)
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        row = Row(cell, error=message, **experiment.facts(bench, cell, method))
    row.write(plant.folder)
    return cell, time.perf_counter() - started, row.error


def _drain(
    pool: ProcessPoolExecutor,
    plant: Plant,
    cells: Sequence[Cell],
    announce: Callable[[Cell, float, str | None], None],
) -> None:
    waiting: set[Future[tuple[Cell, float, str | None]]] = {pool.submit(one, plant, cell) for cell in cells}
    while waiting:
        finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in finished:
            announce(*future.result())


def _method(cell: Cell) -> Method | None:
    return None if cell.method == DENSE else KNOWN[cell.method]


def _lacks(plant: Plant, cell: Cell) -> bool:
    return not experiment.weights_file(plant.bench(cell), cell.seed).is_file()


def prepare() -> None:
    """In every worker: one thread, and an end when the parent ends, however it does."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)
