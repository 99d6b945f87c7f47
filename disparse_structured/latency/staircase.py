"""At which widths an operation is measured, and what it then takes at any widths: a step function."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from disparse_structured.latency.ladder import Ladder
from disparse_structured.latency.table import Widths
from disparse_structured.latency.work import Entry

_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Which shares of a dense width are measured, rounded to rungs."""

_OFF = (0.15, 0.5, 1.0)
"""Which shares are measured between rungs, where that is slower."""

_WINDOW = 32
"""How many consecutive widths show on which of them an operation is fast."""

_TOP, _NARROW = 80, 32
"""The largest width of a window, and the other width meanwhile."""

_POSITIONS = 400
"""With so many positions, one such width takes long enough to be timed well, and not longer."""


@dataclass(frozen=True)
class Rungs:
    """On which widths a family of operations is fast: channels of a group that it reads and makes."""

    read: Ladder = field(default_factory=Ladder)
    made: Ladder = field(default_factory=Ladder)


@dataclass(frozen=True)
class Grid:
    """Widths at which an entry is measured: each of ``read`` with each of ``made``, ascending."""

    read: tuple[int, ...]
    made: tuple[int, ...]

    def points(self, entry: Entry) -> list[Widths]:
        """All of them."""
        return [entry.at(read, made) for read, made in itertools.product(self.read, self.made)]

    def times(self, entry: Entry, table: Mapping[Widths, float]) -> np.ndarray:
        """float64 ``[read, made]``."""
        times = np.array([table[point] for point in self.points(entry)])
        return times.reshape(len(self.read), len(self.made))


def windows(entry: Entry) -> tuple[list[Widths], list[Widths]]:
    """Consecutive widths that it reads, and that it makes: times at these show its rungs.

    None where a width cannot shrink, or is too small for rungs to matter.
    """
    return _window(entry, 0), _window(entry, 1)


def telling(entry: Entry) -> tuple[int, float]:
    """How well an entry shows the rungs of its family: best if wide enough, and neither quick nor slow."""
    widths = [min(width, _TOP) for width, free in zip(entry.dense, entry.free, strict=True) if free]
    return (sum(widths), -abs(math.log(entry.operation.positions / _POSITIONS)))


def grids(entry: Entry, rungs: Rungs) -> tuple[Grid, Grid | None]:
    """The widths to measure on the rungs, and those between, where these are slower."""
    read, made = (_axis(entry, axis, ladder) for axis, ladder in enumerate((rungs.read, rungs.made)))
    off_read, off_made = (_between(entry, axis, each) for axis, each in enumerate((rungs.read, rungs.made)))
    off = Grid(off_read, made) if off_read else Grid(read, off_made) if off_made else None
    return Grid(read, made), off


def _window(entry: Entry, axis: int) -> list[Widths]:
    unit = _unit(entry, axis)
    most = min(entry.dense[axis] // unit, _TOP)
    if not entry.free[axis] or most < _WINDOW:
        return []
    found = []
    for width in range(most - _WINDOW + 1, most + 1):
        narrow = [
            min(dense, _NARROW * _unit(entry, place)) if free else dense
            for place, (dense, free) in enumerate(zip(entry.dense, entry.free, strict=True))
        ]
        narrow[axis] = width * unit
        found.append(entry.at(narrow[0], narrow[1]))
    return found


def _axis(entry: Entry, axis: int, ladder: Ladder) -> tuple[int, ...]:
    dense = entry.dense[axis]
    if not entry.free[axis]:
        return (dense,)
    rung = ladder.rung * _unit(entry, axis)
    return tuple(
        sorted({min(dense, rung * max(1, round(share * dense / rung))) for share in _SHARES} | {dense})
    )


def _between(entry: Entry, axis: int, ladder: Ladder) -> tuple[int, ...]:
    if not entry.free[axis] or ladder.aligned == 1:
        return ()
    dense, unit = entry.dense[axis], _unit(entry, axis)
    rung = ladder.rung * unit
    found = {rung * max(1, round(share * dense / rung)) - unit for share in _OFF}
    return tuple(sorted(width for width in found if 0 < width < dense))


def _unit(entry: Entry, axis: int) -> int:
    """One channel of every group. What is made is divided among the groups too."""
    groups = entry.operation.groups or 1
    return groups if entry.dense[axis] % groups == 0 else 1


@dataclass(frozen=True, eq=False)
class Staircases:
    """Times of many entries at once, each at widths of its own.

    Between measured widths that are rungs, times are interpolated, and then hold for a whole step.

    Args:
        step: int64 ``[entries, 2]``: widths count as their next multiple.
        aligned: int64 ``[entries, 2]``: other multiples are slower.
        dense: int64 ``[entries, 2]``.
        on, off: the times at aligned widths, and at all others.
    """

    step: np.ndarray
    aligned: np.ndarray
    dense: np.ndarray
    on: _Surface
    off: _Surface

    @classmethod
    def of(
        cls, entries: Sequence[Entry], rungs: Sequence[Rungs], tables: Sequence[Mapping[Widths, float]]
    ) -> Staircases:
        """From the times in ``tables``, which hold :func:`grids` of each entry."""
        step, aligned, on, off = [], [], [], []
        for entry, ladders, table in zip(entries, rungs, tables, strict=True):
            units = [_unit(entry, axis) for axis in (0, 1)]
            pairs = list(zip((ladders.read, ladders.made), units, strict=True))
            step.append([ladder.step * unit for ladder, unit in pairs])
            inside, between = grids(entry, ladders)
            aligned.append([ladder.aligned * unit if between else 1 for ladder, unit in pairs])
            on.append((inside, inside.times(entry, table)))
            off.append((between, between.times(entry, table)) if between else on[-1])
        dense = np.array([entry.dense for entry in entries], dtype=np.int64)
        return cls(np.array(step), np.array(aligned), dense, _Surface.of(on), _Surface.of(off))

    def exact(self, which: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Milliseconds of the entries ``which`` at ``widths``, float64 ``[n, 2]``."""
        aligned, dense = self.aligned[which], self.dense[which]
        fast = ((np.round(widths) % aligned == 0) | (widths >= dense)).all(axis=1)
        return np.where(
            fast, self.on.at(which, self._up(which, widths, self.step)), self.off.at(which, widths)
        )

    def filled(self, which: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """The same at widths that are rungs, but never more for fewer channels."""
        return self.on.falling.at(which, self._up(which, widths, self.step))

    def rungs(self) -> np.ndarray:
        """int64 ``[entries, 2]``: the channels from one rung to the next."""
        rungs: np.ndarray = np.maximum(self.step, self.aligned)
        return rungs

    def _up(self, which: np.ndarray, widths: np.ndarray, step: np.ndarray) -> np.ndarray:
        most: np.ndarray = self.dense[which]
        up: np.ndarray = np.minimum(np.ceil(widths / step[which] - 1e-9) * step[which], most)
        return up


@dataclass(frozen=True, eq=False)
class _Surface:
    """Bilinear between points; ``read``, ``made`` float64 ``[entries, n]``, ``times`` ``[entries, n, n]``."""

    read: np.ndarray
    made: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, grids: Sequence[tuple[Grid, np.ndarray]]) -> _Surface:
        size = max(max(times.shape) for _, times in grids)
        padded = [
            np.pad(times, [(0, size - length) for length in times.shape], mode="edge") for _, times in grids
        ]
        read, made = (
            np.array(
                [np.pad(np.array(axis, dtype=float), (0, size - len(axis)), mode="edge") for axis in axes]
            )
            for axes in zip(*((grid.read, grid.made) for grid, _ in grids), strict=True)
        )
        return cls(read, made, np.array(padded))

    @cached_property
    def falling(self) -> _Surface:
        """With the least time of all grid points that are at least as wide."""
        times = np.minimum.accumulate(self.times[:, ::-1, ::-1], axis=1)
        return _Surface(self.read, self.made, np.minimum.accumulate(times, axis=2)[:, ::-1, ::-1])

    def at(self, which: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """float64 ``[n]``."""
        low, high, along = _place(self.read[which], widths[:, 0])
        under, over, across = _place(self.made[which], widths[:, 1])
        times = self.times
        first = times[which, low, under] * (1 - across) + times[which, low, over] * across
        second = times[which, high, under] * (1 - across) + times[which, high, over] * across
        return np.asarray(first * (1 - along) + second * along)


def _place(axis: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where ``width`` lies in each row of ``axis``: the positions around it, and how far between the two."""
    high = np.clip((axis < width[:, None]).sum(axis=1), 1, max(1, axis.shape[1] - 1))
    high = np.minimum(high, axis.shape[1] - 1)
    low = np.maximum(high - 1, 0)
    rows = np.arange(len(axis))
    start, length = axis[rows, low], axis[rows, high] - axis[rows, low]
    share = np.divide(width - start, length, out=np.zeros_like(start), where=length > 0)
    return low, high, np.clip(share, 0, 1)
