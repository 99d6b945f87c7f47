"""How time and memory are measured: in turn within one run, and peak memory in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each of ``works``, one after the other in every round, after one warm-up of each."""
    for work in works.values():
        work()
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            gc.collect()
            spent[name].append(seconds(work))
    return spent


def paired_ratio(ours: Sequence[float], reference: Sequence[float]) -> float:
    """The median of the ratios within each round. Drifts of the clock rate between rounds cancel out."""
    return statistics.median(mine / other for mine, other in zip(ours, reference, strict=True))


def peak_bytes(work: Callable[[], object]) -> int:
    """By how much the process grows at most while ``work`` runs. Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that is freed but kept by the allocator would hide growth
    before = resident_bytes()
    reset_peak()
    work()
    return largest_bytes() - before


def resident_bytes() -> int:
    """What the process holds in memory. Linux only."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Begins a new measurement of :func:`largest_bytes`. Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def largest_bytes() -> int:
    """The most that the process has held in memory since :func:`reset_peak`. Linux only."""
    return _status("VmHWM")


def in_own_process(module: str, *arguments: str) -> Any:
    """The last line that ``python -m module *arguments`` prints, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _status(field: str) -> int:
    """Bytes of a field of ``/proc/self/status``."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no field {field}. This benchmark needs Linux.")
