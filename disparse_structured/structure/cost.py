"""Analytic cost of any set of kept units: multiply-accumulates and parameters.

Every cost is a sum of products of *widths*. Every width is a fixed part plus the number of kept
positions. One sparse matrix-vector product and one product per term therefore give the cost of a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

Keep = torch.Tensor | np.ndarray


@dataclass(frozen=True, eq=False)
class WidthMap:
    """``fixed + matrix @ keep``: the widths of all dimensions that a plan can change.

    ``matrix`` is a sparse ``[rows, units]`` count of positions, ``fixed`` is int64 ``[rows]``.
    """

    matrix: Any
    fixed: np.ndarray

    def __call__(self, keep: Keep) -> np.ndarray:
        """Return float64 ``[rows]`` for bool ``[units]``."""
        return np.asarray(self.fixed + self.matrix @ np.asarray(keep, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Products:
    """``sum(coefficients * product(widths[rows], over columns))``; ``rows`` is int64 ``[terms, factors]``."""

    coefficients: np.ndarray
    rows: np.ndarray

    def total(self, widths: np.ndarray) -> float:
        """Compute the sum for float64 ``[rows]`` widths."""
        return float(self.coefficients @ widths[self.rows].prod(axis=1))

    def gradient(self, widths: np.ndarray) -> np.ndarray:
        """Return the derivative of the total by each width, float64 ``[rows]``."""
        result = np.zeros(len(widths))
        factors = widths[self.rows]
        for column in range(self.rows.shape[1]):
            others = np.delete(factors, column, axis=1).prod(axis=1)
            np.add.at(result, self.rows[:, column], self.coefficients * others)
        return result


@dataclass(frozen=True, eq=False)
class AnalyticCost:
    """One cost of the network as a function of the kept units, ``keep`` bool ``[units]``."""

    widths: WidthMap
    products: Products

    @cached_property
    def dense(self) -> float:
        """The cost of the dense network."""
        return self.total(np.ones(self.widths.matrix.shape[1], dtype=bool))

    def total(self, keep: Keep) -> float:
        """Compute the cost of the network with the units of ``keep``."""
        return self.products.total(self.widths(keep))

    def marginal(self, keep: Keep) -> torch.Tensor:
        """Estimate what removing each unit from ``keep`` saves, to first order; float64 ``[units]``."""
        return torch.from_numpy(self.widths.matrix.T @ self.products.gradient(self.widths(keep)))


@dataclass(frozen=True, eq=False)
class AnalyticCosts:
    """Both analytic costs of the network, and the widths they depend on.

    MACs are multiply-accumulates of convolutions, linear layers, matrix products and attention for one
    example. A layer whose number of rows depends on the data counts with the rows that the dense network has
    on the example inputs, in the mean over the examples. Parameters count every ``nn.Parameter`` once, even
    if tied.
    """

    widths: WidthMap
    macs: AnalyticCost
    parameters: AnalyticCost

    @classmethod
    def of(cls, widths: WidthMap, macs: Products, parameters: Products) -> AnalyticCosts:
        """Build the costs from their sums of products of ``widths``."""
        return cls(widths, AnalyticCost(widths, macs), AnalyticCost(widths, parameters))


class WidthTable:
    """Collects label arrays as rows of a :class:`WidthMap`.

    Equal arrays share a row; row 0 is the constant 1.
    """

    def __init__(self, units: np.ndarray, count: int) -> None:
        """``units`` is int64 ``[atoms]``: the flat unit of each atom, -1 where it is fixed."""
        self._units = units
        self._count = count
        self._rows: dict[bytes, int] = {}
        self._arrays: list[np.ndarray] = [np.array([-1])]

    def row(self, labels: np.ndarray) -> int:
        """Return the row of the width that counts ``labels``."""
        units = np.ascontiguousarray(self._units[labels])
        key = units.tobytes()
        if key not in self._rows:
            self._rows[key] = len(self._arrays)
            self._arrays.append(units)
        return self._rows[key]

    def is_fixed(self, row: int) -> bool:
        """Check whether every plan keeps the width."""
        return bool((self._arrays[row] < 0).all())

    def size(self, row: int) -> int:
        """Return the width in the dense network."""
        return len(self._arrays[row])

    def products(self, terms: Sequence[tuple[float, Sequence[np.ndarray]]]) -> Products:
        """Convert terms of a coefficient and label arrays; multiply fixed widths into the coefficient."""
        coefficients, rows = [], []
        for coefficient, axes in terms:
            factors = []
            for axis in axes:
                row = self.row(axis)
                if self.is_fixed(row):
                    coefficient *= self.size(row)
                else:
                    factors.append(row)
            coefficients.append(float(coefficient))
            rows.append(factors)
        width = max([len(factors) for factors in rows], default=0) or 1
        padded = [factors + [0] * (width - len(factors)) for factors in rows]
        return Products(np.array(coefficients), np.array(padded, dtype=np.int64).reshape(len(rows), width))

    def finish(self) -> WidthMap:
        """Return the map of all rows so far."""
        from scipy.sparse import csr_array

        lengths = [len(units) for units in self._arrays]
        row = np.repeat(np.arange(len(lengths)), lengths)
        unit = np.concatenate(self._arrays)
        free = unit >= 0
        fixed = np.bincount(row[~free], minlength=len(lengths))
        matrix = csr_array(
            (np.ones(free.sum()), (row[free], unit[free])), shape=(len(lengths), max(self._count, 0))
        )
        return WidthMap(matrix, fixed)
