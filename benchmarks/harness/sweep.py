"""Sweeps: cells that run in processes of their own, stage by stage, with limits on their time and memory."""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from benchmarks.harness.limits import Limits, run_limited
from benchmarks.harness.row import Shelf, decode, reason
from benchmarks.harness.runner import Progress, Say, aloud, remaining, run_all


class SweepCell(Protocol):
    """A frozen dataclass of plain values that says what to run."""

    @property
    def label(self) -> str:
        """Its name in logs and on the shelf."""
        ...

    @property
    def settings(self) -> str:
        """Identifies everything that determines the row, except for the code."""
        ...

    @property
    def arguments(self) -> list[str]:
        """The cell on the command line of the module that measures it."""
        ...


START = "start"
"""The stage before all others: Python and the libraries are being loaded."""

CellT = TypeVar("CellT", bound=SweepCell)


@dataclass(frozen=True)
class SweepRow(Generic[CellT]):
    """What one cell gave; what a stage finds keeps its default if the stage did not end.

    Args:
        cell: the cell that was run.
        settings: those of the cell.
        stage: the stage in which the process ended; empty if all stages were finished.
        failures: stage to reason.
        seconds: of every stage that ended.
        first_try: the verdict of the first run of this cell; empty if this is the first.
    """

    cell: CellT
    settings: str = ""
    stage: str = START
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    first_try: str = ""

    needed: ClassVar[Sequence[str]] = ()
    """The stages that must end; none means that all must."""

    beside: ClassVar[Sequence[str]] = ()
    """Stages whose failures do not count."""

    @property
    def sound(self) -> bool:
        """Whether the stages that must end have ended."""
        if self.needed:
            return all(stage in self.seconds for stage in self.needed)
        return not self.stage and not self.failures

    @property
    def verdict(self) -> str:
        """``sound``, or the first stage that failed, with its reason."""
        failed = [f"{stage}: {reason}" for stage, reason in self.failures.items() if stage not in self.beside]
        return "sound" if self.sound else failed[0] if failed else f"{self.stage}: not finished"


RowT = TypeVar("RowT", bound=SweepRow[Any])


@dataclass(frozen=True)
class Workspace(Generic[CellT, RowT]):
    """Where the cells of a sweep are run.

    Args:
        folder: where rows are kept, and below it what the processes print.
        row, cell: the classes.
        module: run as ``python -m module *cell.arguments FILE *options``; it writes the row to the file.
        limits: of each process.
        options: further arguments of the module.
    """

    folder: Path
    row: type[RowT]
    cell: type[CellT]
    module: str
    limits: Limits = field(default_factory=Limits)
    options: tuple[str, ...] = ()

    @property
    def shelf(self) -> Shelf[RowT]:
        """All rows; of cells with one label, the last."""
        return Shelf(self.folder / "rows.jsonl", self.row, self.cell)

    def rows(self) -> list[RowT]:
        """The rows of the present settings; raises :class:`RowError`."""
        return [row for row in self.shelf.rows() if row.settings == row.cell.settings]

    def log(self, cell: CellT) -> Path:
        """What the cell's process prints."""
        return self.folder / "logs" / (re.sub(r"[^\w.-]+", "-", cell.label) + ".log")


def work(
    cells: Sequence[CellT],
    space: Workspace[CellT, RowT],
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

    def run(cell: CellT) -> tuple[RowT, float]:
        started = time.perf_counter()
        return _one(cell, space, known.get(cell), stop), time.perf_counter() - started

    def announce(result: tuple[RowT, float]) -> None:
        row, seconds = result
        progress.finished(row.cell.label, seconds, row.verdict)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            run_all(pool, run, todo, announce)
        except BaseException:
            stop.set()
            raise
    return len(todo)


def run_stage(
    row: RowT, name: str, stage: Callable[[], Mapping[str, Any]], keep: Callable[[RowT], None]
) -> RowT:
    """``row`` with what ``stage`` finds, or why it failed; ``keep`` gets the row before."""
    row = replace(row, stage=name)
    keep(row)
    started = time.perf_counter()
    try:
        found = stage()
    except Exception as error:
        traceback.print_exc()
        return replace(row, failures={**row.failures, name: reason(error)})
    return replace(row, **found, seconds={**row.seconds, name: time.perf_counter() - started})


def _one(cell: CellT, space: Workspace[CellT, RowT], old: RowT | None, stop: threading.Event) -> RowT:
    """Runs a cell in a process of its own and keeps its row; ``old`` is the row it had."""
    log = space.log(cell)
    begun = log.with_suffix(".begun")
    log.parent.mkdir(parents=True, exist_ok=True)
    begun.unlink(missing_ok=True)
    arguments = [*cell.arguments, str(begun.resolve()), *space.options]
    ended = run_limited(space.module, arguments, log, space.limits, stop)
    row = _found(begun, cell, space)
    if row.stage:
        row = replace(row, failures={row.stage: ended or "the process ended early", **row.failures})
    row = replace(row, first_try=row.verdict if old is None else old.first_try)
    space.shelf.put(row)
    begun.unlink(missing_ok=True)
    return row


def _found(begun: Path, cell: CellT, space: Workspace[CellT, RowT]) -> RowT:
    """What the process has written of its row; a row by another version of this code is a failure."""
    nothing = space.row(cell, settings=cell.settings)
    if not begun.is_file():
        return nothing
    try:
        return decode(begun.read_text(encoding="utf-8"), space.row, space.cell)
    except (ValueError, TypeError) as error:
        return replace(nothing, failures={nothing.stage: f"what the process wrote is not a row: {error}"})
