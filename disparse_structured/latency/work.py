"""A dissected network as a function of the kept units: which widths each of its parts reads and makes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from torch import nn

from disparse_structured.latency.operations import Operation, makes_first
from disparse_structured.latency.runtime import Dissection, Part
from disparse_structured.latency.table import Widths
from disparse_structured.structure import Structure
from disparse_structured.structure.cost import WidthMap, WidthTable

_PREFIX = "model."
"""What the exporter's wrapper puts before the names of parameters."""


@dataclass(frozen=True)
class Entry:
    """An operation between its dense widths: what is measured once, wherever it occurs.

    ``dense`` are the channels that it reads and makes, and ``free`` says which of the two a plan can change.
    If they are ``tied``, what is made follows what is read.
    """

    operation: Operation
    dense: Widths
    free: tuple[bool, bool]
    tied: bool

    @property
    def family(self) -> object:
        """What entries have in common that are fast on the same widths."""
        return (*self.operation.family, self.tied)

    def at(self, read: int, made: int) -> Widths:
        """The widths with ``read`` channels; ``made`` ones, unless these are tied."""
        return (read, read * self.dense[1] // self.dense[0]) if self.tied else (read, made)


@dataclass(frozen=True, eq=False)
class Work:
    """All parts of a network.

    Args:
        widths: from kept units to widths, one row each.
        entries: the distinct operations.
        entry: int64 ``[operations]``, the entry of each weighted part.
        read, made: int64 ``[operations]``, the rows of its widths.
        factor: float64 ``[operations]``, what the row of ``read`` is multiplied by.
        ms: float64 ``[operations]``, what it takes in the dense network.
        fixed, linear: what all other parts take is ``fixed + linear @ widths``, float64 ``[rows]``.
    """

    widths: WidthMap
    entries: tuple[Entry, ...]
    entry: np.ndarray
    read: np.ndarray
    made: np.ndarray
    factor: np.ndarray
    ms: np.ndarray
    fixed: float
    linear: np.ndarray


@dataclass(frozen=True)
class _Weighted:
    """A part whose time depends on two widths: rows of the width table."""

    entry: Entry
    read: int
    made: int
    factor: float
    ms: float


def work_of(dissection: Dissection, structure: Structure, model: nn.Module) -> Work:
    """What each part of the dissected ``model`` reads and makes, by the groups of ``structure``."""
    labels = _Labels(structure, model)
    weighted: list[_Weighted] = []
    shares: list[dict[int, float]] = []  # of the dense width, by row; row 0 is constant
    linear: dict[int, float] = defaultdict(float)
    for part in dissection.parts:
        found = _weighted(part, labels)
        if found is not None:
            weighted.append(found)
            shares.append({found.made: 1 / labels.table.size(found.made)})
            continue
        share = _mean(part.sources, shares) if part.weight is None else {0: 1.0}
        shares.append(share)
        for row, each in share.items():
            linear[row] += part.ms * each
    entries = tuple(dict.fromkeys(each.entry for each in weighted))
    places = {entry: place for place, entry in enumerate(entries)}
    widths = labels.table.finish()
    rows = np.zeros(len(widths.fixed))
    rows[list(linear)] = list(linear.values())
    fixed, rows[0] = float(rows[0]), 0.0
    return Work(
        widths,
        entries,
        np.array([places[each.entry] for each in weighted], dtype=np.int64),
        np.array([each.read for each in weighted], dtype=np.int64),
        np.array([each.made for each in weighted], dtype=np.int64),
        np.array([each.factor for each in weighted]),
        np.array([each.ms for each in weighted]),
        fixed,
        rows,
    )


def _mean(sources: tuple[tuple[int, int], ...], shares: list[dict[int, float]]) -> dict[int, float]:
    """How much is left of what a part reads, by row, weighted with how many numbers it reads."""
    total = sum(count for _, count in sources)
    if not total:
        return {0: 1.0}
    mean: dict[int, float] = defaultdict(float)
    for source, count in sources:
        for row, share in shares[source].items():
            mean[row] += share * count / total
    return dict(mean)


def _weighted(part: Part, labels: _Labels) -> _Weighted | None:
    found = None if part.node is None or part.weight is None else labels.of(part.weight_name, part.weight)
    if found is None or part.node is None or part.weight is None:
        return None
    made, read = found[:2] if makes_first(part.node) else found[1::-1]
    free = [not labels.table.is_fixed(row) for row in (read, made)]
    follows = free[1] and not free[0]
    operation = Operation.of(part, groups_follow=follows)
    if operation is None:
        return None
    groups = operation.groups_at(part.shape[1]) if operation.grouped is None else 1
    dense_made = labels.table.size(made)
    if operation.grouped is not None:
        dense_read = part.shape[1]
        entry = Entry(operation, (dense_read, dense_made), (True, False), tied=True)
        return _Weighted(entry, made, made, dense_read / dense_made, part.ms)
    entry = Entry(operation, (labels.table.size(read) * groups, dense_made), (free[0], free[1]), tied=False)
    return _Weighted(entry, read, made, float(groups), part.ms)


class _Labels:
    """Rows of widths by the weights of a file."""

    def __init__(self, structure: Structure, model: nn.Module) -> None:
        self._shapes = structure.capture.shapes()
        self._labels: dict[tuple[str, int], np.ndarray] = {}
        for group in structure.groups:
            for member in group.members:
                key = member.parameter, member.dim
                size = self._shapes[member.parameter][member.dim]
                labels = self._labels.setdefault(key, np.full(size, -1))
                for unit, positions in enumerate(member.index, start=group.start):
                    labels[positions] = unit
        self.table = WidthTable(np.append(np.arange(structure.units), -1), structure.units)
        self._tensors = {
            name: tensor.detach().cpu().numpy()
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if tensor.ndim == 2 and tensor.is_floating_point() and name in self._shapes
        }

    def of(self, name: str, weight: np.ndarray) -> tuple[int, int] | None:
        """The rows of the first two dimensions of ``weight``; None where it is no parameter."""
        own = name.removeprefix(_PREFIX)
        if self._shapes.get(own) == weight.shape:
            return self._row(own, 0), self._row(own, 1)
        # The exporter transposes the weights of linear layers, and names them differently.
        for own, tensor in self._tensors.items():
            if tensor.shape[::-1] == weight.shape and np.array_equal(tensor.T, weight):
                return self._row(own, 1), self._row(own, 0)
            if tensor.shape == weight.shape and np.array_equal(tensor, weight):
                return self._row(own, 0), self._row(own, 1)
        return None

    def _row(self, name: str, dim: int) -> int:
        size = self._shapes[name][dim]
        return self.table.row(self._labels.get((name, dim), np.full(size, -1)))
