"""Measures operations at the widths that their step functions need, but for what is known already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from disparse_structured.latency.ladder import Ladder
from disparse_structured.latency.operations import Operation, model_of
from disparse_structured.latency.runtime import Runtime
from disparse_structured.latency.staircase import Rungs, grids, telling, windows
from disparse_structured.latency.table import Table, Widths
from disparse_structured.latency.work import Entry
from disparse_structured.progress import advancing

_LEAST = 1e-4
"""The least milliseconds of an operation: runtimes report shorter times as 0."""

_BYTES = 256e6
"""The most that one model holds, unless a single node of it holds more."""


@dataclass(frozen=True, eq=False)
class Measuring:
    """Where times come from, and where they go."""

    runtime: Runtime
    table: Table
    opsets: Mapping[str, int]
    progress: bool

    def rungs(self, entries: Sequence[Entry]) -> list[Rungs]:
        """On which widths each entry is fast."""
        shown: dict[object, Entry] = {}
        for entry in entries:
            if entry.family not in shown or telling(entry) > telling(shown[entry.family]):
                shown[entry.family] = entry
        wanted = [
            (entry.operation, [*read, *made]) for entry in shown.values() for read, made in [windows(entry)]
        ]
        self._measure("finding the steps of the runtime", wanted)
        found = {family: self._rungs(entry) for family, entry in shown.items()}
        return [found[entry.family] for entry in entries]

    def times(self, entries: Sequence[Entry], rungs: Sequence[Rungs]) -> list[Mapping[Widths, float]]:
        """The times of each entry at the widths of its grids."""
        wanted = []
        for entry, ladders in zip(entries, rungs, strict=True):
            on, off = grids(entry, ladders)
            wanted.append((entry.operation, on.points(entry) + (off.points(entry) if off else [])))
        self._measure("measuring operations", wanted)
        return [self.table.times(entry.operation.key) for entry in entries]

    def _rungs(self, entry: Entry) -> Rungs:
        times = self.table.times(entry.operation.key)
        ladders = []
        for axis, window in enumerate(windows(entry)):
            groups = entry.operation.groups or 1
            widths = [point[axis] // (groups if window[0][axis] % groups == 0 else 1) for point in window]
            ladders.append(Ladder.of(widths, [times[point] for point in window]) if window else Ladder())
        return Rungs(*ladders)

    def _measure(self, title: str, wanted: Sequence[tuple[Operation, Sequence[Widths]]]) -> None:
        missing: dict[Operation, dict[Widths, None]] = defaultdict(dict)
        for operation, points in wanted:
            known = self.table.times(operation.key)
            missing[operation] |= dict.fromkeys(point for point in points if point not in known)
        batches = [
            (operation, batch)
            for operation, points in missing.items()
            for batch in _batches(operation, points)
        ]
        with advancing(title, len(batches), self.progress) as advance:
            for operation, batch in batches:
                found = self.runtime.time_nodes(
                    model_of([(operation, point) for point in batch], self.opsets)
                )
                times = {point: max(found[str(number)], _LEAST) for number, point in enumerate(batch)}
                self.table.add(operation.key, times)
                advance()


def _batches(operation: Operation, points: Mapping[Widths, None]) -> list[list[Widths]]:
    """``points`` such that no model becomes too large; all of one batch run in turn."""
    batches: list[list[Widths]] = []
    held = 0.0
    for read, made in points:
        weight = int(np.prod(operation.weight_shape((read, made))))
        size = 4.0 * (operation.positions * (read + made) + weight)
        if not batches or held + size > _BYTES:
            batches.append([])
            held = 0.0
        batches[-1].append((read, made))
        held += size
    return batches
