"""Joining and splitting tensors: cat, stack, split, chunk, unbind, pad, repeat."""

from __future__ import annotations

import numpy as np
import torch

from disparse_structured.graph.operators import packet
from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, plain, rule

aten = torch.ops.aten


def replaced(value: Value, dim: int, axis: Axis) -> Value:
    """Replace dimension ``dim`` of ``value`` by ``axis``."""
    dim %= len(value)
    return (*value[:dim], axis, *value[dim + 1 :])


@rule(aten.cat, aten.concat, aten.concatenate)
def cat(trace: Trace, call: Call) -> Value:
    """Concatenate labels along ``dim`` and unite them in every other dimension."""
    values = [value for value in call["tensors"] if not (len(value) == 1 and value[0].size == 0)]
    if not values:
        return plain(call.shapes[0])
    return _joined(trace, call, values, call["dim"] % len(values[0]))


_STACKS = {aten.vstack: 0, aten.hstack: 1, aten.column_stack: 1, aten.dstack: 2}
"""Along which dimension they concatenate tensors that have it."""


@rule(*_STACKS)
def cat_along(trace: Trace, call: Call) -> Value:
    """Apply :func:`cat` along the dimension that the operator stands for."""
    values, dim = call["tensors"], _STACKS[packet(call.node)]
    if any(len(value) < max(dim + 1, 2) for value in values):
        return trace.unknown(call, "stacked along a new dimension")
    return _joined(trace, call, values, dim)


def _joined(trace: Trace, call: Call, values: list[Value], dim: int) -> Value:
    axes = []
    for i in range(len(values[0])):
        parts = [value[i] for value in values]
        if i != dim:
            axes.append(trace.join(call, parts))
        elif all(part.labels is None for part in parts):
            axes.append(_concatenated(parts, None))
        else:
            axes.append(_concatenated(parts, np.concatenate([part.atoms() for part in parts])))
    return tuple(axes)


def _concatenated(parts: list[Axis], labels: np.ndarray | None) -> Axis:
    samples = [part.sample for part in parts]
    known = [sample for sample in samples if sample is not None]
    sample = np.concatenate(known) if len(known) == len(samples) else None
    return Axis(sum(part.size for part in parts), labels, sample)


@rule(aten.stack)
def stack(trace: Trace, call: Call) -> Value:
    """Add a pinned dimension and unite the others."""
    values = call["tensors"]
    joined = trace.broadcast(call, values)
    dim = call["dim"] % (len(joined) + 1)
    return (*joined[:dim], Axis(len(values)), *joined[dim:])


@rule(aten.split, aten.split_with_sizes, aten.chunk, aten.unsafe_split, aten.unsafe_chunk, aten.tensor_split)
def split(trace: Trace, call: Call) -> list[Value]:
    """Give each part its labels, and unite equal parts so that they stay equal.

    If the last part is smaller, the positions that only the others have are pinned.
    """
    value, dim = call["self"], call["dim"]
    axis = value[dim]
    sizes = [shape[dim] for shape in call.shapes]
    bounds = np.cumsum([0, *sizes])
    if axis.labels is None:
        samples = axis.sample
        return [
            replaced(value, dim, Axis(size, None, None if samples is None else samples[start : start + size]))
            for start, size in zip(bounds, sizes, strict=False)
        ]
    parts = [axis.labels[start : start + size] for start, size in zip(bounds, sizes, strict=False)]
    literal = next(
        (call.raw[name] for name in ("split_size", "split_sizes", "sizes") if name in call.raw), None
    )
    if isinstance(literal, list | tuple):
        for expression, part in zip(call.expressions(literal), parts, strict=True):
            trace.literal(call, expression, Axis(len(part), part))
    elif _splits_equally(call, sizes):
        least = sizes[-1]
        for part in parts[1:]:
            trace.unite(call, parts[0][:least], part[:least])
        for part in parts[:-1]:
            trace.pin(call, [Axis(len(part) - least, part[least:])], "the last of equal parts has no more")
        trace.kind(axis.labels, "bundle")
        if isinstance(literal, int):
            trace.literal(call, call.expressions([literal])[0], Axis(len(parts[0]), parts[0]))
    else:
        trace.pin(call, [axis], "split into unequal parts, or at positions")
    return [replaced(value, dim, Axis(len(part), part)) for part in parts]


def _splits_equally(call: Call, sizes: list[int]) -> bool:
    """Whether parts are equal, or the last is only so much smaller that their number will not change.

    False if ``tensor_split`` was given positions, which do not follow the width.
    """
    if any(name in call.raw for name in ("indices", "tensor_indices_or_sections")):
        return False
    if len(set(sizes)) == 1:
        return True
    chunks, first, last = call.raw.get("chunks"), sizes[0], sizes[-1]
    if set(sizes[:-1]) != {first} or not last < first:
        return False
    return "split_size" in call.raw or (chunks == len(sizes) and first - last < len(sizes))


@rule(aten.unbind)
def unbind(trace: Trace, call: Call) -> list[Value]:
    """Drop the dimension, which is pinned."""
    value = call["self"]
    dim = call["dim"] % len(value)
    trace.pin(call, [value[dim]], "unbind along it")
    return [(*value[:dim], *value[dim + 1 :])] * value[dim].size


@rule(aten.pad, aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d, aten.reflection_pad1d)
def pad(trace: Trace, call: Call) -> Value:
    """Add zeros around labels as fixed positions; pin dimensions that are padded in other ways."""
    value, shape = call["self"], call.shapes[0]
    padding = call["pad" if "pad" in call.raw else "padding"]
    axes = list(value)
    for i in range(len(padding) // 2):
        dim, (before, after) = len(value) - 1 - i, padding[2 * i : 2 * i + 2]
        if before == after == 0:
            continue
        axis = axes[dim]
        if axis.labels is None or before < 0 or after < 0 or call.get("mode") not in (None, "constant"):
            trace.pin(call, [axis], "padding along it")
            axes[dim] = Axis(shape[dim])
        else:
            fixed = [np.zeros(count, dtype=np.int64) for count in (before, after)]
            axes[dim] = Axis(shape[dim], np.concatenate([fixed[0], axis.labels, fixed[1]]))
    return tuple(axes)


@rule(aten.repeat, aten.tile)
def repeat(trace: Trace, call: Call) -> Value:
    """Repeat the labels of a dimension once per copy; a single position grows as in ``expand``."""
    value, counts = call["self"], call["repeats" if "repeats" in call.raw else "dims"]
    counts = [*[1] * (len(value) - len(counts)), *counts]
    value = (*plain([1] * (len(counts) - len(value))), *value)
    result = []
    for axis, count, expression in zip(value, counts, call.expressions(counts), strict=True):
        grown = axis
        if axis.size == 1 and count > 1:
            grown = Axis(count, trace.labels.fresh(count))
            trace.literal(call, expression, grown)
        elif count != 1:
            grown = Axis(axis.size * count, None if axis.labels is None else np.tile(axis.labels, count))
            trace.literal(call, expression, Axis(count))
        result.append(grown)
    return tuple(result)


@rule(aten.repeat_interleave)
def repeat_interleave(trace: Trace, call: Call) -> Value:
    """Repeat each position in place; the number of repeats is constant."""
    value, count, dim = call["self"], call.get("repeats"), call.get("dim")
    if not isinstance(count, int) or dim is None:
        return trace.unknown(call, "repeat_interleave by a tensor")
    axis = value[dim]
    labels = None if axis.labels is None else np.repeat(axis.labels, count)
    sample = None if axis.sample is None else np.repeat(axis.sample, count)
    return replaced(value, dim, Axis(axis.size * count, labels, sample))
