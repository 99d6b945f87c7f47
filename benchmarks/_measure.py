"""How benchmarks measure: in turn within one run, and peak memory in a process of its own."""

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

from benchmarks.machine import machine


def in_turn(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each of ``works``, ``rounds`` times, one after the other in every round, warmed up once."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            gc.collect()
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def paired_ratio(ours: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round, which drifts of the clock leave alone."""
    return statistics.median(mine / other for mine, other in zip(ours, reference, strict=True))


def peak_bytes(work: Callable[[], object]) -> int:
    """How far the process grows at most while ``work`` runs. Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed, but kept by the allocator, would hide growth
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to what is resident
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def in_own_process(module: str, *arguments: str) -> Any:
    """What ``python -m module *arguments`` prints, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def write(path: Path, facts: Mapping[str, Any]) -> None:
    """``facts`` and the machine they were found on, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), **facts}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
