"""Works off cells, each in a process of its own that may take so long and so much memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.rows import RowError
from benchmarks.timm_sweep.cells import LATE, Cell, Row, Shelf, read

Say = Callable[[str], None]

PAUSE = 0.1
"""Seconds between two looks at a process."""


@dataclass(frozen=True)
class Limits:
    """What one process may take.

    Args:
        seconds: from its start.
        memory: GB that it holds in memory, looked at several times a second; Linux only.
        threads: of torch and ONNX Runtime.
        stock: whether stock Torch-Pruning is tried as well.
    """

    seconds: float = 600.0
    memory: float = 12.0
    threads: int = 1
    stock: bool = True


def aloud(text: str) -> None:
    """Prints a line at once, also into a file or a pipe."""
    print(text, flush=True)


def work(
    cells: Sequence[Cell],
    shelf: Shelf,
    limits: Limits,
    *,
    jobs: int = 1,
    again: bool = False,
    retry: bool = False,
    say: Say = aloud,
) -> int:
    """Runs what has no row, or all ``again``, or with ``retry`` also what is not sound; how many were run.

    A cell that fails, crashes or passes a limit leaves a row that says so. May be killed at any time and
    called again.
    """
    todo = [cell for cell in dict.fromkeys(cells) if again or _is_open(shelf.row(cell), retry)]
    say(f"{len(todo)} of {len(cells)} cells to run, {jobs} at a time")
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(one, cell, shelf, limits, stop) for cell in todo]
            for place, future in enumerate(as_completed(futures), 1):
                row = future.result()
                told = f"{row.verdict}  ({sum(row.seconds.values()):.0f} s)"
                say(f"[{place}/{len(todo)}] {row.cell.model} {row.cell.kind}: {told}")
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(todo)


def one(cell: Cell, shelf: Shelf, limits: Limits, stop: threading.Event) -> Row:
    """Runs a cell in a process of its own and keeps its row; what it prints is in ``*.log`` beside that."""
    old = shelf.row(cell)
    file = (shelf.folder / cell.file).resolve()
    begun = file.with_suffix(".begun")
    file.parent.mkdir(parents=True, exist_ok=True)
    begun.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.timm_sweep.measure", cell.model, cell.kind, str(begun)]
    command += [] if limits.stock else ["--no-stock"]
    command += [f"--image-size={cell.image_size}"] if cell.image_size else []
    threads = str(limits.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    log = file.with_suffix(".log")
    with (
        log.open("w", encoding="utf-8") as written,
        subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
            stdin=subprocess.PIPE,  # never written to; the process ends when it is closed
            stdout=written,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            reason = _watch(process, limits, stop)
        finally:
            process.kill()
    if stop.is_set():
        raise KeyboardInterrupt
    row = _found(begun, cell)
    if row.stage:
        reason = reason or f"the process ended with status {process.returncode}: {_last_line(log)}"
        row = replace(row, failures={row.stage: reason, **row.failures})
    row = replace(row, first_try=row.verdict if old is None else old.first_try)
    shelf.put(row)
    begun.unlink(missing_ok=True)
    return row


def _found(begun: Path, cell: Cell) -> Row:
    """What the process has written of its row; one of another version of this code does not stop a run."""
    nothing = Row(cell, settings=cell.settings)
    try:
        return read(begun) if begun.is_file() else nothing
    except RowError as error:
        return replace(nothing, failures={nothing.stage: str(error)})


def _watch(process: subprocess.Popen[bytes], limits: Limits, stop: threading.Event) -> str | None:
    """Waits for the end, or brings it about; why, if there is more to say than the status."""
    deadline = time.monotonic() + limits.seconds
    while process.poll() is None:
        if stop.wait(PAUSE):
            return "stopped"
        if time.monotonic() > deadline:
            return f"{LATE} {limits.seconds:g} s"
        if _gigabytes(process.pid) > limits.memory:
            return f"{LATE} {limits.memory:g} GB of memory"
    if process.returncode < 0:
        return f"the process was ended by {signal.Signals(-process.returncode).name}"
    return None


def _gigabytes(pid: int) -> float:
    """What a process holds in memory; 0 where the system does not tell, or the process is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0.0
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e9


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def _is_open(row: Row | None, retry: bool) -> bool:
    return row is None or (retry and not row.sound)
