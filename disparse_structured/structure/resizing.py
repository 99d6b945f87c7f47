"""Finds the integers of an exported graph that are sizes, and their values when the widths change.

A module computes its sizes in Python, from numbers that may not follow its widths. Its exported graph
holds the results as literals of its operators, which can always be rewritten. An operator's record says
which of its integer arguments are sizes, and what they count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from disparse_structured.graph.operators import Counts, operator_of
from disparse_structured.graph.provenance import Arithmetic, Expression, Size
from disparse_structured.structure.cost import Keep, WidthMap, WidthTable
from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, is_value

Counted = Callable[[Call, Any, str], list[Axis]]
"""Maps a call, its result's value and an argument's name to what the argument's integers count, in order."""


@dataclass(frozen=True)
class Resize:
    """Integer ``item`` (None: the only one) of ``node``'s ``argument`` equals row ``row`` of the widths.

    ``batched`` if it is also proportional to the number of examples in the batch.
    """

    node: str
    argument: str
    item: int | None
    row: int
    batched: bool


@dataclass(frozen=True, eq=False)
class Resizing:
    """All integers of a graph that follow the widths or the batch; ``batch`` is its batch size at export.

    ``widths`` count positions of the graph's values over all examples of that batch.
    """

    places: tuple[Resize, ...]
    widths: WidthMap
    batch: int

    def sizes(self, keep: Keep) -> dict[Resize, int]:
        """Compute the integers of the graph with the units of ``keep``, bool ``[units]``."""
        widths = self.widths(keep)
        return {place: round(float(widths[place.row])) for place in self.places}


def _result(call: Call, result: Value, argument: str) -> list[Axis]:
    return list(result)


def _repeats(call: Call, result: Value, argument: str) -> list[Axis]:
    repeated: Value = call["self"]
    ones = [1] * (len(result) - len(repeated))
    sizes = [*ones, *(axis.size for axis in repeated)]
    return [
        axis if size == 1 else Axis(axis.size // size if size else 0, None, None)
        for axis, size in zip(result, sizes, strict=True)
    ]


def _unflattened(call: Call, result: Value, argument: str) -> list[Axis]:
    start = call["dim"] % len(call["self"])
    return list(result[start : start + len(call.raw[argument])])


def _trailing(call: Call, result: Value, argument: str) -> list[Axis]:
    return list(result[-len(call.raw[argument]) :])


def _parts(call: Call, results: list[Value], argument: str) -> list[Axis]:
    return [part[call["dim"]] for part in results]


def _along(call: Call, result: Value, argument: str) -> list[Axis]:
    return [result[call["dim"]]]


def _before(call: Call, result: Value, argument: str) -> list[Axis]:
    axis: Axis = call["self"][call["dim"]]
    before = slice(0, call.raw[argument])
    return [
        Axis(
            len(range(*before.indices(axis.size))),
            None if axis.labels is None else axis.labels[before],
            None if axis.sample is None else axis.sample[before],
        )
    ]


def _channels(call: Call, result: Value, argument: str) -> list[Axis]:
    """The input channels: a depthwise convolution has as many groups (checked by :func:`_places`)."""
    value, weight = call["input"], call["weight"]
    channels: Axis = value[len(value) - (len(weight) - 1)]
    return [channels] if channels.size > 1 else []


COUNTED: dict[Counts, Counted] = {
    "result": _result,
    "repeats": _repeats,
    "unflattened": _unflattened,
    "trailing": _trailing,
    "parts": _parts,
    "along": _along,
    "before": _before,
    "channels": _channels,
}
"""Maps what an operator's record says to the function that finds what its integers count."""


def resizing_of(trace: Trace, units: np.ndarray, count: int, batch: int) -> Resizing:
    """Find the sizes in a traced graph by the operators' records.

    Args:
        units: int64 ``[atoms]``, the flat unit of each atom, -1 where it is fixed.
        count: the number of units.
        batch: the number of examples that the graph was exported with.
    """
    table = WidthTable(units, count)
    places = []
    for node in trace.capture.graph.nodes:
        sized = operator_of(node).sizes
        if not sized or not _known(trace, node):
            continue
        call = Call(node, _reader(trace))
        for argument, counts in sized.items():
            for item, axis, expression in _places(call, argument, counts, trace.values[node.name]):
                row = table.row(axis.atoms())
                batched = _per_example(axis, batch) or _follows(expression, axis.size, trace, batch)
                if batched or not table.is_fixed(row):
                    places.append(Resize(node.name, argument, item, row, batched))
    return Resizing(tuple(places), table.finish(), batch)


def _known(trace: Trace, node: fx.Node) -> bool:
    """Whether all sizes that ``node`` reads and returns were known before it ran."""
    result = trace.values.get(node.name)
    parts = result if isinstance(result, list) else [result]
    return all(map(is_value, [*parts, *(trace.values.get(each.name) for each in node.all_input_nodes)]))


def _reader(trace: Trace) -> Callable[[Any], Any]:
    def read(item: Any) -> Any:
        return trace.values.get(item.name) if isinstance(item, fx.Node) else item

    return read


def _places(
    call: Call, argument: str, counts: Counts, value: Any
) -> Iterator[tuple[int | None, Axis, Expression]]:
    """Items of the argument, what they count, and their origin.

    An item counts a dimension only if it equals its size. This excludes -1 and a slice bound beyond the end.
    """
    given = call.raw.get(argument)
    items: list[tuple[int | None, Any]] = (
        list(enumerate(given)) if isinstance(given, list | tuple) else [(None, given)]
    )
    if any(type(literal) is not int for _, literal in items):
        return
    origins = call.expressions([literal for _, literal in items])
    for (item, literal), axis, origin in zip(
        items, COUNTED[counts](call, value, argument), origins, strict=False
    ):
        if literal == axis.size:
            yield item, axis, origin


def _per_example(axis: Axis, batch: int) -> bool:
    """Whether every example of the batch owns the same number of positions."""
    if axis.sample is None or not axis.size:
        return False
    owned = np.bincount(axis.sample, minlength=batch)
    return bool((owned == owned[0]).all())


def _follows(expression: Expression, size: int, trace: Trace, batch: int) -> bool:
    """Whether ``forward`` computed the size in proportion to the batch."""
    return size % batch == 0 and _proportional(expression, trace, batch) is True


def _proportional(expression: Expression, trace: Trace, batch: int) -> bool | None:
    """True: proportional to the batch; False: independent of it; None: neither."""
    if isinstance(expression, Size):
        value = trace.annotated.get(expression.value)
        return _per_example(value[expression.dim], batch) if is_value(value) and value else None
    if not isinstance(expression, Arithmetic):
        return False
    left, right = (_proportional(side, trace, batch) for side in (expression.left, expression.right))
    if left is None or right is None:
        return None
    if expression.symbol in "+-":
        return left if left == right else None
    if expression.symbol == "*":
        return None if left and right else left or right
    return left != right if left or not right else None
