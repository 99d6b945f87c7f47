"""On which widths an operation of a runtime is fast, read off measured times.

Two facts are looked for. Times may rise in *steps*: a runtime pads a width to the next multiple. And a width
may have to be *aligned*: for others the runtime takes a slower path altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_STEPS = (1, 2, 4, 8, 16, 32)
_SLOWER = 1.1
"""Unaligned widths must take this much longer than aligned ones, or alignment does not matter."""

_BETTER = 2.0
"""How much smaller the squared error of a larger step must be."""


@dataclass(frozen=True)
class Ladder:
    """Widths cost as much as the next multiple of ``step``, unless they are no multiple of ``aligned``."""

    step: int = 1
    aligned: int = 1

    @property
    def rung(self) -> int:
        """Multiples of this are worth stopping on."""
        return max(self.step, self.aligned)

    @classmethod
    def of(cls, widths: Sequence[int], times: Sequence[float]) -> Ladder:
        """The simplest ladder that explains ``times`` at consecutive ``widths``.

        >>> widths = range(33, 65)
        >>> Ladder.of(widths, [2.0 * -(-width // 8) for width in widths])
        Ladder(step=8, aligned=1)
        >>> Ladder.of(widths, [width if width % 4 == 0 else 3 * width for width in widths])
        Ladder(step=1, aligned=4)
        """
        width, time = np.asarray(widths, dtype=float), np.asarray(times, dtype=float)
        best, best_error = cls(), _error(width, time, 1, 1)
        for aligned in _STEPS:
            off = width % aligned != 0
            if aligned > 1 and not _falls_out(time, off):
                continue
            for step in _STEPS:
                error = _error(width, time, step, aligned)
                if error * _BETTER < best_error:
                    best, best_error = cls(step, aligned), error
        return best


def _falls_out(time: np.ndarray, off: np.ndarray) -> bool:
    if off.all() or not off.any():
        return False
    return bool(np.median(time[off]) > _SLOWER * np.median(time[~off]))


def _error(width: np.ndarray, time: np.ndarray, step: int, aligned: int) -> float:
    """The squared relative error of the best straight line through the steps, and one through the rest."""
    off = width % aligned != 0
    snapped = np.where(off, width, np.ceil(width / step) * step)
    columns = [np.where(off, 0, 1), np.where(off, 0, snapped), np.where(off, 1, 0), np.where(off, width, 0)]
    matrix = np.stack(columns, axis=1) / time[:, None]
    solution, *_ = np.linalg.lstsq(matrix, np.ones(len(time)), rcond=None)
    return float(((matrix @ solution - 1) ** 2).mean() + 1e-6)
