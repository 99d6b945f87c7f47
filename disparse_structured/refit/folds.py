"""Two folds of a regression's data, stored as sums of products, or as rows where these are fewer.

With at least as many rows as features, the folds are stored as sums of products ("moments"); with fewer,
as their rows, whose products (the kernel) replace the Gram matrix.

Memory: about four matrices of ``n x n``, ``n = min(rows, features)``, in double precision up to ``n`` = 4,096
and in single beyond; and the rows, ``[rows, features]``, where they are fewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from disparse_structured.refit.products import add_products, complete
from disparse_structured.refit.regression import FOLDS, Fit, Folds, Shape

LIMIT = 8192
"""Largest matrix that is factorized: with more features, this many rows are taken in all."""

_DOUBLE = 4096
"""Largest size of matrices in double precision."""

AT_ONCE = 512
"""Most rows that are gathered before their products are added, which touches the whole Gram matrix."""


def folds(shape: Shape, rows: int, dtype: torch.dtype, device: torch.device) -> Folds:
    """Create empty folds for ``rows`` rows in all, of type ``dtype``."""
    if rows < shape.features or shape.features > LIMIT:
        return _Rows(shape, rows, dtype, device)
    return _Moments(shape, dtype, device)


class _Fold:
    """Sums over one fold. A constant is subtracted from each feature for precision."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        def zeros(*size: int) -> Tensor:
            return torch.zeros(shape.groups, *size, dtype=torch.float64, device=device)

        self.count = 0
        self.sum, self.total, self.square = zeros(shape.features), zeros(shape.outputs), zeros(shape.outputs)

    def add(self, rows: Tensor, residuals: Tensor) -> None:
        self.count += rows.shape[1]
        self.sum += rows.sum(1)
        self.total += residuals.sum(1)
        self.square += residuals.square().sum(1)

    def join(self, other: _Fold) -> None:
        self.count += other.count
        self.sum += other.sum
        self.total += other.total
        self.square += other.square

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count

    @property
    def average(self) -> Tensor:
        return self.total / self.count


class _Common:
    """What both kinds of folds share; :class:`Folds` says what the methods do."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self._folds = [_Fold(shape, device) for _ in FOLDS]
        self._values = torch.float64 if dtype is torch.float64 else torch.float32
        self.finest = 0.0 if self._values is torch.float64 else torch.finfo(torch.float32).eps
        self._shift = torch.zeros(shape.groups, 1, shape.features, dtype=self._values, device=device)
        self._started = False

    def before(self, fold: int) -> Tensor:
        return self._folds[fold].square

    def finite(self) -> bool:
        return all(
            bool(each.isfinite().all())
            for fold in self._folds
            for each in (fold.sum, fold.total, fold.square)
        )

    def _shifted(self, fold: int, rows: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
        rows, residuals = rows.to(self._shift), residuals.to(self._shift)
        if self.shape.intercept:
            if not self._started:
                self._shift.copy_(rows.mean(1, keepdim=True))
                self._started = True
            rows = rows - self._shift
        self._folds[fold].add(rows, residuals)
        return rows, residuals

    def _fit(self, change: Tensor, fold: _Fold) -> Fit:
        if not self.shape.intercept:
            return Fit(change, torch.zeros_like(fold.total))
        mean = fold.mean + self._shift[:, 0]
        return Fit(change, fold.average - (change.double() @ mean[:, :, None])[..., 0])


class _Moments(_Common):
    """Sums of products of features with each other and with residuals, for each fold."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shape, dtype, device)
        self._dtype = torch.float64 if shape.features <= _DOUBLE else torch.float32
        self._grams = [self._zeros(shape.features) for _ in FOLDS]
        self._crosses = [self._zeros(shape.outputs) for _ in FOLDS]
        self._coarse: list[tuple[Tensor, Tensor]] = []
        self._held: list[list[tuple[Tensor, Tensor]]] = [[] for _ in FOLDS]

    def add(self, fold: int, rows: Tensor, residuals: Tensor) -> None:
        held = self._held[fold]
        held.append(self._shifted(fold, rows, residuals))
        if sum(rows.shape[1] for rows, _ in held) >= min(AT_ONCE, self.shape.features // 4):
            self._multiply(fold)

    def _multiply(self, fold: int) -> None:
        """Adds the products of the rows that are held."""
        held, self._held[fold] = self._held[fold], []
        if not held:
            return
        rows, residuals = (torch.cat(each, 1) for each in zip(*held, strict=True))
        add_products(self._grams[fold], rows)
        if rows.dtype == self._dtype:
            self._crosses[fold].baddbmm_(rows.mT, residuals)
        else:  # products of these rows in single precision, their sum in double
            self._crosses[fold] += rows.mT @ residuals

    def errors(self, fold: int, ridge: float | None, centers: Sequence[Tensor | None]) -> list[Tensor] | None:
        for each in FOLDS:
            self._multiply(each)
        if not self._coarse:
            for gram in self._grams:
                complete(gram)
            # Errors are only compared: for single-precision values, single is enough and twice as fast.
            pairs = zip(self._grams, self._crosses, strict=True)
            self._coarse = [(gram.to(self._values), cross.to(self._values)) for gram, cross in pairs]
        found = self._changes(*self._coarse[fold], self._folds[fold], ridge, centers)
        return None if found is None else [self._left(1 - fold, fold, change) for change in found]

    def solution(self, ridge: float | None, center: Tensor | None) -> Fit | None:
        self._coarse.clear()
        if len(self._grams) > 1:
            for each in FOLDS:
                self._multiply(each)
            self._folds[0].join(self._folds[1])
            self._grams[0] += self._grams.pop()  # a factorization reads the lower triangle only
            self._crosses[0] += self._crosses.pop()
        found = self._changes(self._grams[0], self._crosses[0], self._folds[0], ridge, [center])
        return None if found is None else self._fit(found[0], self._folds[0])

    def _changes(
        self, gram: Tensor, cross: Tensor, sums: _Fold, ridge: float | None, centers: Sequence[Tensor | None]
    ) -> list[Tensor] | None:
        """The best change ``[groups, out, features]`` for each center, given these products."""
        if ridge is None:
            nothing = cross.new_zeros(cross.mT.shape)
            return [nothing if center is None else center.to(cross) for center in centers]
        damped = gram.clone()
        if self.shape.intercept:
            mean, total = sums.mean.to(gram), sums.total.to(gram)
            damped.baddbmm_(mean[:, :, None], sums.sum.to(gram)[:, None], alpha=-1)
            cross = cross - mean[:, :, None] * total[:, None]
        scale = _damp(damped, ridge)
        right = [
            cross if center is None else cross + (scale * ridge)[:, None, None] * center.to(cross).mT
            for center in centers
        ]
        solved = _solved(damped, torch.cat(right, 2))
        return None if solved is None else [each.mT for each in solved.split(self.shape.outputs, 2)]

    def _left(self, fold: int, fitted: int, change: Tensor) -> Tensor:
        """Sum of squares that a change leaves on ``fold``, its intercept fitted on ``fitted``."""
        gram, cross = self._coarse[fold]
        sums = self._folds[fold]
        quadratic = ((change @ gram) * change).sum(-1).double()
        linear = (change * cross.mT).sum(-1).double()
        left = sums.square + quadratic - 2 * linear
        if self.shape.intercept:
            wide, source = change.double(), self._folds[fitted]
            constant = source.average - (wide @ source.mean[:, :, None])[..., 0]
            moved = (wide @ sums.sum[:, :, None])[..., 0]
            left = left + constant * (sums.count * constant + 2 * moved - 2 * sums.total)
        return left.clamp_min(0)

    def _zeros(self, columns: int) -> Tensor:
        features = self.shape.features
        return torch.zeros(self.shape.groups, features, columns, dtype=self._dtype, device=self._shift.device)


class _Rows(_Common):
    """The rows themselves, first fold first, and, after the first error, their products."""

    def __init__(self, shape: Shape, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shape, dtype, device)
        self._dtype = torch.float64 if rows <= _DOUBLE else torch.float32
        # One buffer, filled from both ends, needs no second copy to join the folds.
        self._rows = self._shift.new_empty(shape.groups, rows, shape.features)
        self._residuals = self._shift.new_empty(shape.groups, rows, shape.outputs)
        self._kernel: Tensor | None = None

    def add(self, fold: int, rows: Tensor, residuals: Tensor) -> None:
        start = self._folds[fold].count
        rows, residuals = self._shifted(fold, rows, residuals)
        size, total = rows.shape[1], self._rows.shape[1]
        place = slice(start, start + size) if fold == 0 else slice(total - start - size, total - start)
        self._rows[:, place] = rows
        self._residuals[:, place] = residuals

    def errors(self, fold: int, ridge: float | None, centers: Sequence[Tensor | None]) -> list[Tensor] | None:
        own, other = self._places(fold), self._places(1 - fold)
        right, held = [], []
        for center in centers:
            left = self._after(center)
            average = left[:, own].mean(1, keepdim=True) if self.shape.intercept else 0
            right.append(left[:, own] - average)
            held.append(left[:, other] - average)
        if ridge is None:
            return [each.square().sum(1).double() for each in held]
        kernel = self._products()
        solved = self._dual(kernel[:, own, own], torch.cat(right, 2), ridge)
        if solved is None:
            return None
        across = kernel[:, other, own] @ solved
        if self.shape.intercept:
            # The solution sums to zero, so centering by the fold's mean leaves one term.
            across = across - kernel[:, own, own].mean(1, keepdim=True) @ solved
        pairs = zip(held, across.split(self.shape.outputs, 2), strict=True)
        return [(left - moved).square().sum(1).double() for left, moved in pairs]

    def solution(self, ridge: float | None, center: Tensor | None) -> Fit | None:
        both = _Fold(self.shape, self._rows.device)
        both.join(self._folds[0])
        both.join(self._folds[1])
        start = both.total.new_zeros(()) if center is None else center.to(both.total)
        if ridge is None:
            change = start.expand(self.shape.groups, self.shape.outputs, self.shape.features)
            return self._fit(change, both)
        right = self._after(center)
        if self.shape.intercept:
            right = right - right.mean(1, keepdim=True)
        solved = self._dual(self._products(), right, ridge)
        if solved is None:
            return None
        return self._fit((solved.mT.to(self._rows) @ self._rows).to(both.total) + start, both)

    def _dual(self, kernel: Tensor, right: Tensor, ridge: float) -> Tensor | None:
        damped = kernel.clone()
        count = kernel.shape[1]
        if self.shape.intercept:
            means = kernel.mean(1)
            damped -= means[:, None]
            damped -= (means - means.mean(1, keepdim=True))[:, :, None]
        _damp(damped, ridge * count / self.shape.features)
        return _solved(damped, right)

    def _after(self, center: Tensor | None) -> Tensor:
        """The residuals that a center leaves."""
        residuals: Tensor = self._residuals
        if center is not None:
            residuals = residuals - self._rows @ center.mT.to(self._rows)
        return residuals.to(self._dtype)

    def _products(self) -> Tensor:
        if self._kernel is None:
            self._kernel = (self._rows @ self._rows.mT).to(self._dtype)
        return self._kernel

    def _places(self, fold: int) -> slice:
        first = self._folds[0].count
        return slice(0, first) if fold == 0 else slice(first, self._rows.shape[1])


def _damp(matrix: Tensor, ridge: float) -> Tensor:
    """Adds the ridge to the diagonal, in place; returns its unit, ``[groups]``.

    A group without variation gets ones: its right-hand side is zero, and so is its solution.
    """
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    scale: Tensor = diagonal.mean(1)
    diagonal.add_(torch.where(scale > 0, scale * ridge, torch.ones_like(scale))[:, None])
    return scale


def _solved(matrix: Tensor, right: Tensor) -> Tensor | None:
    """``matrix^-1 right``; None where the precision is insufficient."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):
        return None
    solved: Tensor = torch.cholesky_solve(right, factor)
    return solved if math.isfinite(float(solved.sum())) else None
