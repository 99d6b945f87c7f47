"""Labels: the owner of each position of each dimension.

Every parameter and buffer has one *atom* for each (dimension, index). Each dimension of a value in the graph
holds the atoms that its positions stand for. Operator rules pass them on, unite them
(they must be removed together) or pin them (they cannot be removed).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

PINNED = 0
"""The atom of every position that cannot be removed."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of a value.

    ``labels`` is int64 ``[size]``, or None where no position can be removed. ``sample`` is int64 ``[size]``,
    the number of the example in the batch that each position belongs to, or None if it mixes examples.
    """

    size: int
    labels: np.ndarray | None = None
    sample: np.ndarray | None = None

    def atoms(self) -> np.ndarray:
        """Return the labels, or PINNED for every position if there are none."""
        return np.full(self.size, PINNED) if self.labels is None else self.labels

    def with_labels(self, labels: np.ndarray | None) -> Axis:
        """Return the same dimension with other labels."""
        return Axis(self.size if labels is None else len(labels), labels, self.sample)


Value = tuple[Axis, ...]


@dataclass(frozen=True, eq=False)
class PinRecord:
    """``operator`` in ``module`` pins ``atoms``; ``number`` if it does because Python code counts them."""

    atoms: np.ndarray
    reason: str
    operator: str
    module: str
    number: bool = False


@dataclass
class Labels:
    """Atoms, what unites them and what pins them; all are collected, then solved once."""

    count: int = 1
    edges: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    pins: list[PinRecord] = field(default_factory=list)

    def fresh(self, size: int) -> np.ndarray:
        """Create ``size`` new atoms."""
        atoms = np.arange(self.count, self.count + size)
        self.count += size
        return atoms

    def unite(self, first: np.ndarray, second: np.ndarray, reason: str, operator: str, module: str) -> None:
        """Require that ``first`` and ``second`` (broadcast) be removed together, position by position."""
        first, second = (np.ravel(side) for side in np.broadcast_arrays(first, second))
        free = (first != PINNED) & (second != PINNED)
        different = free & (first != second)
        if different.any():
            self.edges.append((first[different], second[different]))
        if not free.all():
            self.pin(np.concatenate([first[~free], second[~free]]), reason, operator, module)

    def pin(self, atoms: np.ndarray, reason: str, operator: str, module: str) -> None:
        """Record that ``atoms`` cannot be removed."""
        atoms = np.unique(atoms)
        atoms = atoms[atoms != PINNED]
        if atoms.size:
            self.pins.append(PinRecord(atoms, reason, operator, module))

    def solve(self) -> np.ndarray:
        """Return the class of every atom, int64 ``[count]``, before :meth:`pinned` applies the pins."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self.edges:
            return np.arange(self.count)
        rows, columns = (np.concatenate(side) for side in zip(*self.edges, strict=True))
        graph = coo_array(
            (np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(self.count, self.count)
        )
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)

    def pinned(self, classes: np.ndarray, records: Iterable[PinRecord]) -> np.ndarray:
        """Mark the classes with a pinned atom, bool ``[number of classes]``."""
        pinned = np.zeros(int(classes.max()) + 1, dtype=bool)
        pinned[classes[PINNED]] = True
        for record in records:
            pinned[classes[record.atoms]] = True
        return pinned
