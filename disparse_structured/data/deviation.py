"""How far outputs moved, relative in the Euclidean norm: the whole output, and its columns by size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

_ALIKE = 0.01
"""Columns of one size are at least this fraction of the largest of them.

Logits share one unit, and one that is near zero may be tens of times smaller than the others.
"""

_NOTHING = 1e-6
"""A column below this fraction of the largest has no size of its own: it counts only as part of the whole."""

_SHOWN = 3

Weights = dict[tuple[int, int | None], Tensor]
"""By the position of a tensor and a dimension (None: none), a number for each index of that dimension."""

View = dict[tuple[int, int | None], Tensor]
"""Likewise, three rows: the squared differences, the squared wanted values, and how many there are."""


@dataclass(frozen=True)
class Columns:
    """Some columns of an output that has columns of several sizes.

    ``place`` names them, such as ``"columns 4-83 of dimension 1"``; ``deviation`` is relative to them alone.
    """

    place: str
    deviation: float


@dataclass(frozen=True)
class Deviation:
    """How far an output moved: the ``whole``, and the ``columns`` of one size that moved most.

    ``columns`` is None where all are of one size, so that the whole says everything.
    """

    whole: float
    columns: Columns | None = None

    @property
    def judged(self) -> float:
        """What a tolerance is compared with: the larger of the two."""
        return max(self.whole, self.columns.deviation) if self.columns else self.whole


class Movement:
    """Adds up how far the tensors of one task moved.

    A column is an index of dimension 1; in tensors of three dimensions, such as boxes ``[N, anchors, 6]``,
    also one of the last. (In tensors of more dimensions, the last one is a position in an image.) The size
    of a column is its root mean square. Columns are of one size if none is a hundred times smaller than the
    largest of them. Where an output has columns of several sizes, each size is also compared by itself, so
    that boxes up to 640 do not hide scores of 0.06.

    >>> moved = Movement()
    >>> moved.add([torch.tensor([[640.0, 0.75]])], [torch.tensor([[640.0, 0.5]])])
    >>> moved.deviation.columns
    Columns(place='column 1 of dimension 1', deviation=0.5)
    """

    def __init__(self) -> None:
        self._views: tuple[View, View] = ({}, {})

    @property
    def compared(self) -> bool:
        """Whether any value was compared."""
        return any(bool(sums[2].any()) for sums in self._views[0].values())

    @property
    def deviation(self) -> Deviation:
        """That of everything added so far; absolute if all wanted values are zero."""
        return Deviation(self._whole(), max(self._parts(), key=lambda each: each.deviation, default=None))

    @property
    def damage(self) -> float:
        """The squared deviation of the whole; with columns of several sizes, its mean over the sizes."""
        moved = [part.deviation for part in self._parts()] or [self._whole()]
        return sum(each**2 for each in moved) / len(moved)

    @property
    def weights(self) -> Weights:
        """The weight of squared differences in each column in :attr:`damage`, by tensor and dimension."""
        parts = [(view, part) for view in self._views for part in _alike(view)]
        if not parts:
            whole = sum(float(sums[1].sum()) for sums in self._views[0].values()) or 1.0
            return {key: torch.full_like(sums[1], 1 / whole) for key, sums in self._views[0].items()}
        found: Weights = {}
        for view, part in parts:
            size = torch.cat(list(view.values()), 1)[1]
            weight = torch.zeros_like(size)
            weight[part] = 1 / (len(parts) * size[part].sum())
            for key, each in zip(view, weight.split([sums.shape[1] for sums in view.values()]), strict=True):
                found[key] = found[key] + each if key in found else each
        return found

    def add(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        """Add the difference between one chunk's tensors and the wanted ones, where those are finite."""
        for number, (actual, expected) in enumerate(zip(found, wanted, strict=True)):
            self._add(number, actual, expected)

    def _whole(self) -> float:
        totals = [sums.sum(1).tolist() for sums in self._views[0].values()]
        return _relative(*(sum(total[each] for total in totals) for each in range(2)))

    def _parts(self) -> list[Columns]:
        return [part for view in self._views for part in _by_size(view)]

    def _add(self, number: int, found: Tensor, wanted: Tensor) -> None:
        usable = wanted.isfinite()
        wide = torch.promote_types(wanted.dtype, torch.float64)
        wanted = torch.where(usable, wanted.to(wide), 0)
        squares = (
            torch.where(usable, found.to(wide) - wanted, 0).abs().square(),
            wanted.abs().square(),
            usable.double(),
        )
        channels = 1 if wanted.ndim > 1 else None
        for view, dim in zip(self._views, (channels, 2 if wanted.ndim == 3 else channels), strict=True):
            sums = torch.stack([_sums(each, dim) for each in squares]).cpu()
            before = view.get((number, dim), sums[:, :0])
            columns = max(sums.shape[1], before.shape[1])
            view[number, dim] = _padded(before, columns) + _padded(sums, columns)


def damage(found: Sequence[Tensor], wanted: Sequence[Tensor], weights: Weights) -> Tensor:
    """How far one batch's tensors are from the wanted ones, as a scalar with a gradient.

    With the ``weights`` of a movement to which all batches were added, the sum over all batches is the damage
    of that movement. Values count where the wanted values are finite.

    >>> moved = Movement()
    >>> wanted = [torch.tensor([[3.0, 4.0]])]
    >>> moved.add(wanted, wanted)
    >>> damage([torch.tensor([[3.0, 3.0]])], wanted, moved.weights)
    tensor(0.0400)
    """
    total = torch.zeros(())
    for (number, dim), weight in weights.items():
        wide = torch.promote_types(wanted[number].dtype, torch.float32)
        expected = wanted[number].to(wide)
        off = torch.where(expected.isfinite(), found[number].to(wide) - expected, 0).abs().square()
        total = total.to(off) + _sums(off, dim) @ weight.to(off)
    return total


def has_several_sizes(tensors: Sequence[Tensor]) -> bool:
    """Check whether a task's output has columns of several sizes."""
    movement = Movement()
    movement.add(tensors, tensors)
    return movement.deviation.columns is not None


def _sums(values: Tensor, dim: int | None) -> Tensor:
    return values.sum().reshape(1) if dim is None else values.transpose(0, dim).flatten(1).sum(1)


def _padded(sums: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(sums, (0, columns - sums.shape[1]))


def _alike(view: View) -> list[Tensor]:
    """The positions of the columns of each size, the largest first; none if all are of one size."""
    if not view:
        return []
    _, size, count = torch.cat(list(view.values()), 1)
    sizes = (size / count.clamp_min(1)).sqrt()
    order = sizes.argsort(descending=True, stable=True)
    order = order[sizes[order] > _NOTHING * sizes.max()]
    parts = []
    while len(order):
        alike = sizes[order] >= _ALIKE * sizes[order[0]]
        parts.append(order[alike])
        order = order[~alike]
    return parts if len(parts) > 1 else []


def _by_size(view: View) -> Iterator[Columns]:
    """The columns of each size, the largest first; none if all are of one size."""
    owners = [(*key, column) for key, sums in view.items() for column in range(sums.shape[1])]
    for part in _alike(view):
        off, size, _ = torch.cat(list(view.values()), 1)[:, part].sum(1).tolist()
        place = _place([owners[each] for each in sorted(part.tolist())], several=len(view) > 1)
        yield Columns(place, _relative(off, size))


def _relative(off: float, size: float) -> float:
    return math.inf if math.isnan(off) else math.sqrt(off / (size or 1.0))


def _place(columns: list[tuple[int, int | None, int]], *, several: bool) -> str:
    """Where ``columns``, triples of tensor, dimension and index, are."""
    places = []
    for (number, dim), found in groupby(columns, key=lambda each: each[:2]):
        words = [] if dim is None else [f"{_ranges([each[2] for each in found])} of dimension {dim}"]
        words += [f"tensor {number}"] if several else []
        places.append(" of ".join(words))
    return ", ".join(places)


def _ranges(numbers: list[int]) -> str:
    """``numbers``, ascending, as ranges.

    >>> _ranges([0, 2, 3, 4])
    'columns 0, 2-4'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    shown = ", ".join("-".join(map(str, run)) for run in runs[:_SHOWN])
    more = f" and {len(runs) - _SHOWN} other ranges" if len(runs) > _SHOWN else ""
    return f"column{'s' if len(numbers) > 1 else ''} {shown}{more}"
