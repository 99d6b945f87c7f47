"""One command in a process of its own, with limits on its time and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.files import ROOT

PAUSE = 0.1
"""Seconds between two looks at a process."""

LATE = "it took more than"
"""The beginning of the reason where a limit was exceeded."""


@dataclass(frozen=True)
class Limits:
    """The limits of one process.

    Args:
        seconds: from its start.
        memory: resident GB, checked several times a second; Linux only.
        threads: of torch and ONNX Runtime.
    """

    seconds: float = 600.0
    memory: float = 12.0
    threads: int = 1


def run_limited(
    module: str, arguments: Sequence[str], log: Path, limits: Limits, stop: threading.Event
) -> str | None:
    """Runs ``python -m module *arguments``, with its output in ``log``; why it did not end well, or None.

    The process is killed when it exceeds a limit, or when ``stop`` is set.

    Raises:
        KeyboardInterrupt: ``stop`` was set.
    """
    threads = str(limits.threads)
    with (
        log.open("w", encoding="utf-8") as written,
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            stdin=subprocess.PIPE,  # never written to; see end_with_parent
            stdout=written,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            exceeded = _watch(process, limits, stop)
        finally:
            process.kill()
    if stop.is_set():
        raise KeyboardInterrupt
    if exceeded or process.returncode == 0:
        return exceeded
    if process.returncode < 0:
        return f"the process was ended by {signal.Signals(-process.returncode).name}"
    return f"the process ended with status {process.returncode}: {_last_line(log)}"


def end_with_parent() -> None:
    """Called in a process of :func:`run_limited`: ends it when the process that started it ends."""
    threading.Thread(target=_follow, daemon=True).start()


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises ``TimeoutError`` in the main thread after ``seconds``; 0 means no limit."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"{LATE} {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _watch(process: subprocess.Popen[bytes], limits: Limits, stop: threading.Event) -> str | None:
    """Waits until the process ends, is to be stopped, or exceeds a limit, which is named."""
    deadline = time.monotonic() + limits.seconds
    while process.poll() is None and not stop.wait(PAUSE):
        if time.monotonic() > deadline:
            return f"{LATE} {limits.seconds:g} s"
        if _gigabytes(process.pid) > limits.memory:
            return f"{LATE} {limits.memory:g} GB of memory"
    return None


def _gigabytes(pid: int) -> float:
    """Resident GB of a process; 0 where the system does not tell, or the process is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0.0
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e9


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def _follow() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock would block a normal end
    os._exit(1)
