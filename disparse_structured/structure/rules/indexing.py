"""Indexing: slice, select, index, gather, embedding, roll, flip."""

from __future__ import annotations

import sys
from typing import Any

import torch

from disparse_structured.graph.operators import operator_of
from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.rules.concatenation import replaced
from disparse_structured.structure.tracing import Call, Trace, plain, rule

aten = torch.ops.aten


@rule(aten.slice, aten.narrow)
def slice_(trace: Trace, call: Call) -> Value:
    """Slice the labels; the bounds must follow what they count."""
    value, dim = call["self"], call["dim"]
    axis = value[dim]
    if "length" in call.raw:
        start, step = call["start"], 1
        end = (start + axis.size if start < 0 else start) + call["length"]
    else:
        start, end, step = call["start"] or 0, call["end"], call["step"]
        end = sys.maxsize if end is None else end
    begin, stop, _ = slice(start, end, step).indices(axis.size)
    cut = slice(begin, stop, step)
    sample = None if axis.sample is None else axis.sample[cut]
    if axis.labels is None:
        return replaced(value, dim, Axis(len(range(begin, stop, step)), None, sample))
    labels = axis.labels[cut]
    if _is_tensor_of_the_model(trace, call.raw["self"]):
        trace.read_part(call, axis.labels, labels)
    if step != 1:
        trace.pin(call, [axis], "slice with a step")
    if "length" in call.raw:
        trace.literal(call, call.expressions([call["length"]])[0], Axis(len(labels), labels))
    elif end < axis.size and end != 0:
        counted = axis.labels[stop:] if end < 0 else axis.labels[:stop]
        if end < 0:
            trace.pin(call, [Axis(len(counted), counted)], "slice bound from the end")
        else:
            trace.literal(call, call.expressions([end])[0], Axis(len(counted), counted))
    if start < 0:
        trace.pin(call, [axis], "slice bound from the end")
    elif begin:
        before = axis.labels[:begin]
        trace.literal(call, call.expressions([start])[0], Axis(len(before), before))
    return replaced(value, dim, Axis(len(labels), labels, sample))


def _is_tensor_of_the_model(trace: Trace, node: Any) -> bool:
    while operator_of(node).keeps or operator_of(node).moves not in (None, "repetition"):
        node = node.args[0]
    return node.name in trace.capture.tensors or node.name in trace.capture.attributes


@rule(aten.select)
def select(trace: Trace, call: Call) -> Value:
    """Drop the dimension that one position is selected from, and pin it."""
    value, dim = call["self"], call["dim"] % len(call["self"])
    trace.pin(call, [value[dim]], "one position is selected")
    return (*value[:dim], *value[dim + 1 :])


@rule(aten.index, aten._unsafe_index)
def index(trace: Trace, call: Call) -> Value:
    """Pin indexed dimensions; pass on the others if the indexed dimensions are adjacent."""
    value, indices = call["self"], call["indices"]
    used = [i for i, item in enumerate(indices) if item is not None]
    adjacent = used == list(range(used[0], used[-1] + 1))
    if not adjacent:
        return trace.unknown(call, "indexed in dimensions that are not adjacent")
    trace.pin(call, [value[i] for i in used], "indexed by a tensor")
    for i in used:
        trace.pin(call, indices[i], "used as an index")
    after = len(value) - used[-1] - 1
    shape = call.shapes[0]
    middle = plain(shape[used[0] : len(shape) - after])
    return (*value[: used[0]], *middle, *value[used[-1] + 1 :])


@rule(aten.index_select)
def index_select(trace: Trace, call: Call) -> Value:
    """Pin the selected dimension."""
    value, dim = call["self"], call["dim"]
    trace.pin(call, [value[dim]], "indexed by a tensor")
    return replaced(value, dim, Axis(call.shapes[0][dim]))


@rule(aten.embedding)
def embedding(trace: Trace, call: Call) -> Value:
    """Pin the rows of the table; pass on its columns."""
    weight, indices = call["weight"], call["indices"]
    trace.pin(call, [weight[0]], "rows of an embedding table")
    trace.pin(call, indices, "used as an index")
    return (*indices, weight[1])


@rule(aten.embedding_bag)
def embedding_bag(trace: Trace, call: Call) -> list[Value]:
    """Pin the rows of the table; pass on its columns, which are summed, averaged or compared one by one."""
    weight = call["weight"]
    trace.pin(call, [weight[0]], "rows of an embedding table")
    trace.pin(call, call["indices"], "used as an index")
    bags, *others = call.shapes
    return [(Axis(bags[0]), weight[1]), *map(plain, others)]


@rule(aten.index_put)
def index_put(trace: Trace, call: Call) -> Any:
    """Pin indexed dimensions; unite the others with those of the written values."""
    value, indices, values = call["self"], call["indices"], call["values"]
    used = [i for i, item in enumerate(indices) if item is not None]
    masks = any(_is_mask(item) for item in call.raw["indices"])
    if masks and len(used) == 1:
        return _written_through_mask(trace, call, used[0])
    if masks or not used or used != list(range(used[0], used[-1] + 1)):
        return trace.unknown(call, "written through several masks, or in dimensions that are not adjacent")
    trace.pin(call, [value[i] for i in used], "indexed by a tensor")
    for i in used:
        trace.pin(call, indices[i], "used as an index")
    indexed = trace.broadcast(call, [indices[i] for i in used])
    written = (*value[: used[0]], *indexed, *value[used[-1] + 1 :])
    trace.broadcast(call, [written, values])
    return value


def _written_through_mask(trace: Trace, call: Call, first: int) -> Value:
    """Pin the dimensions that the mask spans, from ``first`` on; unite the later ones with the values'."""
    value: Value = call["self"]
    mask, values = call["indices"][first], call["values"]
    last = first + len(mask)
    trace.pin(call, [*value[first:last], *mask], "written through a mask")
    rest = value[last:]
    after = min(len(rest), len(values))
    trace.broadcast(call, [rest, values[len(values) - after :]])
    trace.pin(call, [*value[:first], *values[: len(values) - after]], "written through a mask")
    return value


def _is_mask(item: object) -> bool:
    meta = getattr(item, "meta", {}).get("val")
    return isinstance(meta, torch.Tensor) and meta.dtype in (torch.bool, torch.uint8)


@rule(aten.gather, aten.scatter, aten.scatter_add, aten.scatter_reduce)
def gather(trace: Trace, call: Call) -> Any:
    """Pin the indexed dimension; unite the others with those of the index and of the written values."""
    value, index = call["self"], call["index"]
    if not value or not index:
        return trace.unknown(call, "an index without dimensions")
    dim, written = call["dim"] % len(value), call.get("src")
    operands = [each for each in (value, index, written) if isinstance(each, tuple)]
    joined = list(value if "gather" not in call.operator else index)
    for i in range(len(value)):
        axes = [each[i] for each in operands]
        if i == dim or len({axis.size for axis in axes}) > 1:
            trace.pin(call, axes, "indexed by a tensor")
        else:
            joined[i] = trace.join(call, axes)
    return tuple(joined)


@rule(aten.take_along_dim)
def take_along_dim(trace: Trace, call: Call) -> Any:
    """Pin the indexed dimension; unite the others with those of the index, which is broadcast."""
    value, index = call["self"], call["indices"]
    if call["dim"] is None:
        return trace.unknown(call, "an index into all positions")
    dim = call["dim"] % len(value)
    trace.pin(call, [value[dim], index[dim]], "indexed by a tensor")
    return tuple(
        Axis(axis.size) if i == dim else trace.join(call, [value[i], axis]) for i, axis in enumerate(index)
    )


@rule(aten.select_scatter, aten.slice_scatter)
def part_scatter(trace: Trace, call: Call) -> Value:
    """Pin the dimension of which a part is written; unite the others with those of the written values."""
    value, written = call["self"], call["src"]
    dim = call["dim"] % len(value)
    if "index" in call.raw:
        written = (*written[:dim], Axis(1), *written[dim:])
    trace.pin(call, [value[dim], written[dim]], "a part of it is written")
    return tuple(
        axis if i == dim else trace.join(call, [axis, other])
        for i, (axis, other) in enumerate(zip(value, written, strict=True))
    )


@rule(aten.index_add, aten.index_copy)
def index_add(trace: Trace, call: Call) -> Value:
    """Pin the indexed dimension; unite the others with those of the written values."""
    value, written = call["self"], call["source"]
    dim = call["dim"] % len(value)
    trace.pin(call, [value[dim], written[dim], *call["index"]], "indexed by a tensor")
    return tuple(
        axis if i == dim else trace.join(call, [axis, other])
        for i, (axis, other) in enumerate(zip(value, written, strict=True))
    )


@rule(aten.index_fill, aten.diagonal)
def filled(trace: Trace, call: Call) -> Value:
    """Pin the dimensions that are indexed; pass on the others."""
    value: Value = call["self"]
    if "dim" in call.raw:
        trace.pin(call, [value[call["dim"]]], "indexed by a tensor")
        return value
    first, second = call["dim1"] % len(value), call["dim2"] % len(value)
    trace.pin(call, [value[first], value[second]], "its diagonal is taken")
    rest = tuple(axis for i, axis in enumerate(value) if i not in (first, second))
    return (*rest, Axis(call.shapes[0][-1]))


@rule(aten.rot90)
def rotated(trace: Trace, call: Call) -> Value:
    """Pin the two dimensions in which positions rotate; pass on the others."""
    value = call["self"]
    dims = [dim % len(value) for dim in call["dims"]]
    trace.pin(call, [value[dim] for dim in dims], "its positions are moved")
    return tuple(
        Axis(size) if i in dims else axis
        for i, (axis, size) in enumerate(zip(value, call.shapes[0], strict=True))
    )


@rule(aten.roll, aten.flip)
def moved(trace: Trace, call: Call) -> Value:
    """Pin dimensions whose positions move; pass on the others."""
    value = call["self"]
    dims = [dim % len(value) for dim in (call["dims"] or range(len(value)))]
    trace.pin(call, [value[dim] for dim in dims], "its positions are moved")
    # The order of pinned labels does not matter; dropping them would hide what pinned the readers.
    return tuple(Axis(axis.size, axis.labels) if i in dims else axis for i, axis in enumerate(value))
