"""Ridge regression on two folds of the data: fitted on each, evaluated on the other.

All arrays have a leading dimension of independent groups. What is fitted is a change of the current
weights: the residual of the target is regressed, and the ridge pulls toward a *center*, which is another
change or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-9)
"""Candidate ridges, in units of the mean of the Gram matrix's diagonal."""

FOLDS = (0, 1)

Center = tuple[Tensor, Tensor, Tensor]
"""A change of the weights, ``[groups, out, features]``, as estimated on each fold and on both."""


@dataclass(frozen=True)
class Shape:
    """The shape of a regression; ``intercept``: whether it fits a constant."""

    groups: int
    outputs: int
    features: int
    intercept: bool


@dataclass(frozen=True, eq=False)
class Fit:
    """``change``, ``[groups, out, features]``, and ``intercept``, ``[groups, out]``."""

    change: Tensor
    intercept: Tensor


@dataclass(frozen=True, eq=False)
class Outcome:
    """``fit`` on both folds; errors are held-out sums of squares, float64 ``[groups, out]``."""

    fit: Fit
    before: Tensor
    after: Tensor


class Folds(Protocol):
    """What is stored of features ``X [groups, rows, features]`` and residuals ``R [groups, rows, out]``."""

    shape: Shape
    finest: float
    """The smallest ridge that the values' precision distinguishes from none."""

    def add(self, fold: int, rows: Tensor, residuals: Tensor) -> None:
        """Add one chunk of a fold."""
        ...

    def before(self, fold: int) -> Tensor:
        """Return the residuals' own sum of squares, ``[groups, out]``."""
        ...

    def errors(self, fold: int, ridge: float | None, centers: Sequence[Tensor | None]) -> list[Tensor] | None:
        """Return, per center, what the fit on ``fold`` leaves on the other; None without a solution.

        A ridge of None is an infinite one: the center itself, and an intercept.
        """
        ...

    def solution(self, ridge: float | None, center: Tensor | None) -> Fit | None:
        """Fit both folds. This uses up the data: no errors can follow."""
        ...

    def finite(self) -> bool:
        """Return whether everything added is finite."""
        ...


def cross_validated(
    folds: Folds,
    ridges: Sequence[float | None],
    centers: Sequence[Center | None] = (None,),
) -> Outcome:
    """Choose, per output, the ridge and the center that are best on held-out data, or no change."""
    before = folds.before(0) + folds.before(1)
    best = before.clone()
    chosen = torch.full(best.shape, -1, device=best.device)
    ridges = [ridge for ridge in ridges if ridge is None or ridge >= folds.finest]
    candidates = [(ridge, number) for ridge in ridges for number in range(len(centers))]
    for ridge in ridges:
        found = [
            folds.errors(fold, ridge, [None if each is None else each[fold] for each in centers])
            for fold in FOLDS
        ]
        if found[0] is None or found[1] is None:
            continue
        for number, (one, other) in enumerate(zip(found[0], found[1], strict=True)):
            error = one + other
            better = error < best
            best = torch.where(better, error, best)
            chosen[better] = candidates.index((ridge, number))
    shape = folds.shape
    change = before.new_zeros(shape.groups, shape.outputs, shape.features)
    intercept = torch.zeros_like(before)
    for candidate in chosen.unique().tolist():
        if candidate < 0:
            continue
        ridge, number = candidates[candidate]
        center = centers[number]
        fit = folds.solution(ridge, None if center is None else center[2])
        taken = chosen == candidate
        if fit is None:
            best = torch.where(taken, before, best)
        else:
            change[taken], intercept[taken] = fit.change[taken].to(change), fit.intercept[taken].to(change)
    return Outcome(Fit(change, intercept), before, best)
