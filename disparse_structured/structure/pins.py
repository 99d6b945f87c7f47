"""Summarizes the share of the parameters that each operator pins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from disparse_structured.structure.groups import Pin
from disparse_structured.structure.labels import PINNED, PinRecord, Value


def summarize(
    records: Iterable[PinRecord], parameters: Mapping[str, Value], classes: np.ndarray, total: int
) -> tuple[tuple[Pin, ...], float]:
    """Return one :class:`Pin` per reason, operator and module, largest first, and the share that numbers pin.

    A pin counts the elements of ``parameters`` in slices that its records pin. Each element counts once,
    however many of its dimensions are pinned. ``total`` is the number of elements in the whole network.
    """
    touched: dict[tuple[str, str, str, bool], list[np.ndarray]] = defaultdict(list)
    for record in records:
        if record.reason != "kernel dimension of a convolution":
            touched[record.reason, record.operator, record.module, record.number].append(record.atoms)
    elements = _Elements.of(parameters.values(), classes)

    def held(atoms: list[np.ndarray]) -> int:
        return elements.held(classes[np.concatenate(atoms)], int(classes[PINNED])) if atoms else 0

    pins = []
    for (reason, operator, module, number), atoms in touched.items():
        if count := held(atoms):
            pins.append(Pin(reason, operator, module, count, count / total, number))
    counted = [each for key, atoms in touched.items() if key[-1] for each in atoms]
    pins.sort(key=lambda pin: (-pin.parameters, pin.reason, pin.module))
    return tuple(pins), held(counted) / total


class _Elements:
    """Counts the elements of tensors in slices of given classes; all dimensions are concatenated."""

    def __init__(self, sizes: Sequence[Sequence[int]], places: Sequence[tuple[int, np.ndarray]]) -> None:
        """``places`` holds the tensor number and the class of each position, for each labeled dimension."""
        self._numels = np.array([np.prod(size, dtype=np.int64) for size in sizes], dtype=np.int64)
        self._owner = np.array([owner for owner, _ in places], dtype=np.int64)
        self._lengths = np.array([len(positions) for _, positions in places], dtype=np.int64)
        self._place = np.repeat(np.arange(len(places)), self._lengths)
        self._classes = (
            np.concatenate([positions for _, positions in places]) if places else np.zeros(0, dtype=np.int64)
        )

    @classmethod
    def of(cls, values: Iterable[Value], classes: np.ndarray) -> _Elements:
        values = list(values)
        places = [
            (owner, classes[axis.labels])
            for owner, value in enumerate(values)
            for axis in value
            if axis.labels is not None
        ]
        return cls([[axis.size for axis in value] for value in values], places)

    def held(self, found: np.ndarray, fixed: int) -> int:
        """Count the elements with a position, in any dimension, of a class in ``found``, not ``fixed``."""
        wanted = np.zeros(max(int(self._classes.max(initial=0)), int(found.max(initial=0))) + 1, dtype=bool)
        wanted[found] = True
        if fixed < len(wanted):
            wanted[fixed] = False
        hits = np.bincount(self._place[wanted[self._classes]], minlength=len(self._lengths))
        outside = np.ones(len(self._numels))
        np.multiply.at(outside, self._owner, 1 - hits / self._lengths)
        return round(float(self._numels @ (1 - outside)))
