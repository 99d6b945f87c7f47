"""Runs cells, each in a process of its own with limits on its time and memory."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness.limits import Limits, run_limited
from benchmarks.harness.row import Shelf, decode
from benchmarks.harness.runner import Progress, Say, aloud, remaining, run_all
from benchmarks.timm_sweep.cells import Cell, Row

MEASURE = "benchmarks.timm_sweep.measure"


@dataclass(frozen=True)
class Workspace:
    """Where cells are run.

    Args:
        folder: where rows are kept, and below it what the processes print.
        limits: of each process.
        stock: whether stock Torch-Pruning is tried as well.
    """

    folder: Path
    limits: Limits = field(default_factory=Limits)
    stock: bool = True

    @property
    def shelf(self) -> Shelf[Row]:
        """All rows; a model has one of each kind, whatever the size of the images."""
        return Shelf(self.folder / "rows.jsonl", Row, Cell)

    def rows(self) -> list[Row]:
        """The rows of the present settings; raises :class:`RowError`."""
        return [row for row in self.shelf.rows() if row.settings == row.cell.settings]

    def log(self, cell: Cell) -> Path:
        """What the cell's process prints."""
        return self.folder / "logs" / (re.sub(r"[^\w.-]+", "-", cell.label) + ".log")


def work(
    cells: Sequence[Cell],
    space: Workspace,
    *,
    jobs: int = 1,
    again: bool = False,
    retry: bool = False,
    say: Say = aloud,
) -> int:
    """Runs the cells without a row, or all ``again``, or with ``retry`` also those that are not sound.

    A cell that fails, crashes or exceeds a limit leaves a row that says so. The run can be interrupted at any
    time and repeated. Returns how many cells were run.

    Raises:
        RowError: the shelf is damaged.
    """
    known = {row.cell: row for row in space.rows()}
    finished = {cell for cell, row in known.items() if row.sound or not retry}
    todo = remaining(cells, finished.__contains__, again)
    progress = Progress(len(todo), len(cells), jobs, say)
    stop = threading.Event()

    def run(cell: Cell) -> tuple[Row, float]:
        started = time.perf_counter()
        return one(cell, space, known.get(cell), stop), time.perf_counter() - started

    def announce(result: tuple[Row, float]) -> None:
        row, seconds = result
        progress.finished(row.cell.label, seconds, row.verdict)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            run_all(pool, run, todo, announce)
        except BaseException:
            stop.set()
            raise
    return len(todo)


def one(cell: Cell, space: Workspace, old: Row | None, stop: threading.Event) -> Row:
    """Runs a cell in a process of its own and keeps its row; ``old`` is the row it had."""
    log = space.log(cell)
    begun = log.with_suffix(".begun")
    log.parent.mkdir(parents=True, exist_ok=True)
    begun.unlink(missing_ok=True)
    arguments = [cell.model, cell.kind, str(begun.resolve())]
    arguments += [] if space.stock else ["--no-stock"]
    arguments += [f"--image-size={cell.image_size}"] if cell.image_size else []
    reason = run_limited(MEASURE, arguments, log, space.limits, stop)
    row = _found(begun, cell)
    if row.stage:
        row = replace(row, failures={row.stage: reason or "the process ended early", **row.failures})
    row = replace(row, first_try=row.verdict if old is None else old.first_try)
    space.shelf.put(row)
    begun.unlink(missing_ok=True)
    return row


def _found(begun: Path, cell: Cell) -> Row:
    """What the process has written of its row; a row by another version of this code is a failure."""
    nothing = Row(cell, settings=cell.settings)
    try:
        return decode(begun.read_text(encoding="utf-8"), Row, Cell) if begun.is_file() else nothing
    except (ValueError, TypeError) as error:
        return replace(nothing, failures={nothing.stage: f"what the process wrote is not a row: {error}"})
