"""On which widths an operation of a runtime is fast, read off measured times.

Two facts are looked for. Times may rise in *steps*: a runtime pads a width to the next multiple. And a width
may have to be *aligned*: for others the runtime takes a slower path altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_STEPS = (1, 2, 4, 8, 16, 32)
_SLOWER = 1.02
"""Unaligned widths must take this much longer than the next aligned one, or alignment does not matter."""

_NARROW, _ENOUGH = 8, 16
"""Widths up to the first follow rules of their own; they are ignored if there are enough wider ones."""

_DISTURBED = 1 / 32
"""The share of the times that may be outliers; a larger one could cover half of the aligned widths."""

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
        wide = width > _NARROW
        if wide.sum() >= _ENOUGH:
            width, time = width[wide], time[wide]
        best, best_error = cls(), _error(width, time, 1, 1)
        for aligned in _STEPS:
            if aligned > 1 and not _falls_out(width, time, aligned):
                continue
            for step in _STEPS:
                error = _error(width, time, step, aligned)
                if error * _BETTER < best_error:
                    best, best_error = cls(step, aligned), error
        return best


def _falls_out(width: np.ndarray, time: np.ndarray, aligned: int) -> bool:
    """Whether unaligned widths take longer than the next aligned ones, though they are narrower."""
    on = width % aligned == 0
    following = np.searchsorted(width[on], width)
    compared = ~on & (following < on.sum())
    if not compared.any():
        return False
    return bool(np.median(time[compared] / time[on][following[compared]]) > _SLOWER)


def _error(width: np.ndarray, time: np.ndarray, step: int, aligned: int) -> float:
    """The squared relative error of the best straight line through the steps, and one through the rest.

    The times that fit worst are left out: another process may have disturbed them.
    """
    off = width % aligned != 0
    snapped = np.where(off, width, np.ceil(width / step) * step)
    columns = [np.where(off, 0, 1), np.where(off, 0, snapped), np.where(off, 1, 0), np.where(off, width, 0)]
    matrix = np.stack(columns, axis=1) / time[:, None]
    ones = np.ones(len(time))
    first, *_ = np.linalg.lstsq(matrix, ones, rcond=None)
    fitting = np.argsort(np.abs(matrix @ first - 1))[: len(time) - int(_DISTURBED * len(time))]
    solution, *_ = np.linalg.lstsq(matrix[fitting], ones[fitting], rcond=None)
    return float(((matrix[fitting] @ solution - 1) ** 2).mean() + 1e-6)
