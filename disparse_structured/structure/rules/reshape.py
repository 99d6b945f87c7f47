"""Operators that move positions without computing: view, permute, expand, squeeze, shuffle."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx

from disparse_structured.graph.operators import named_arguments, operator_of, packet
from disparse_structured.graph.provenance import Arithmetic, Expression
from disparse_structured.structure.heads import head_dimension
from disparse_structured.structure.labels import PINNED, Axis, Value
from disparse_structured.structure.tracing import Call, Trace, rule

aten = torch.ops.aten


@rule(aten.view, aten.reshape, aten.flatten, aten.unflatten, aten._unsafe_view, aten.reshape_as, aten.view_as)
def reshape(trace: Trace, call: Call) -> Value:
    """Split and merge dimensions block by block; literal sizes must follow what they count."""
    value, shape = call["self"], call.shapes[0]
    if math.prod(axis.size for axis in value) != math.prod(shape):
        return trace.unknown(call, "view as elements of another size")
    axes: list[Axis] = []
    for source, target in _blocks([axis.size for axis in value], list(shape)):
        first = len(axes)
        axes.extend(
            _reshape_block(trace, call, [value[i] for i in source], [shape[i] for i in target], first)
        )
    literal = next((call.raw[name] for name in ("size", "shape", "sizes") if name in call.raw), None)
    if literal is not None:
        start = call["dim"] % len(value) if "dim" in call.raw else 0
        expressions = call.expressions(literal)
        given = dict(zip(expressions, axes[start:], strict=False))
        for i, (size, expression) in enumerate(zip(literal, expressions, strict=True)):
            if size != -1:
                trace.literal(call, *_undivided(trace, expression, axes[start + i], given))
    return tuple(axes)


def _undivided(
    trace: Trace, expression: Expression, axis: Axis, others: Mapping[Expression, Axis]
) -> tuple[Expression, Axis]:
    """For a head dimension computed as width // heads, the width and all heads' positions."""
    if trace.attention == "head_dim" and isinstance(expression, Arithmetic) and expression.symbol == "//":
        heads = others.get(expression.right)
        if heads is not None and heads.labels is None and axis.labels is not None:
            return expression.left, Axis(axis.size * heads.size, np.tile(axis.labels, heads.size))
    return expression, axis


def _blocks(source: list[int], target: list[int]) -> list[tuple[list[int], list[int]]]:
    """Pairs the shortest runs of dimensions with equal products."""
    blocks = []
    i = j = 0
    while i < len(source) or j < len(target):
        left: list[int] = []
        right: list[int] = []
        products = [1, 1]
        while True:
            if i < len(source) and (not left or products[0] < products[1]):
                products[0] *= source[i]
                left.append(i)
                i += 1
            elif j < len(target) and (not right or products[1] < products[0]):
                products[1] *= target[j]
                right.append(j)
                j += 1
            else:
                break
        blocks.append((left, right))
    return blocks


def _reshape_block(trace: Trace, call: Call, axes: list[Axis], sizes: list[int], first: int) -> list[Axis]:
    wide = [i for i, size in enumerate(sizes) if size != 1]
    if not wide:
        return [Axis(size) for size in sizes]
    labels = _flat(axes, _owner(trace, call, axes))
    sampled = next((i for i, axis in enumerate(axes) if axis.sample is not None), None)
    samples = _flat([axis.with_labels(axis.sample) for axis in axes], sampled)
    result = [Axis(size) for size in sizes]
    if samples is not None:
        kept = _constant_axis(samples.reshape(sizes), wide)
        if kept is not None:
            result[kept] = Axis(sizes[kept], None, _along(samples.reshape(sizes), kept))
    if labels is None:
        return result
    blocks = labels.reshape(sizes)
    dim = _constant_axis(blocks, wide)
    if dim is None:
        shuffled = _shuffled(call.node)
        whole = trace.attention == "heads" or shuffled
        within = None if whole else head_dimension(call.node, first, sizes)
        dim = _pick_axis(call.node, sizes, wide, first) if within is None else within
        slabs = np.moveaxis(blocks, dim, 0).reshape(sizes[dim], -1)
        trace.unite(call, slabs[:, :1], slabs)
        trace.kind(labels, "bundle" if shuffled or within is not None else "head")
    result[dim] = Axis(sizes[dim], _along(blocks, dim), result[dim].sample)
    return result


def _owner(trace: Trace, call: Call, axes: list[Axis]) -> int | None:
    """The dimension of the block whose labels survive; other labeled dimensions are pinned.

    The last one survives if units are indices of the head dimension, because a table may label the heads.
    """
    labeled = [i for i, axis in enumerate(axes) if axis.labels is not None and (axis.labels != PINNED).any()]
    if trace.attention == "head_dim":
        labeled.reverse()
    for i in labeled[1:]:
        trace.pin(call, [axes[i]], "merged with another prunable dimension")
    return labeled[0] if labeled else None


def _flat(axes: list[Axis], owner: int | None) -> np.ndarray | None:
    """The owner's labels at every position of the block, flattened."""
    if owner is None:
        return None
    labels = axes[owner].labels
    assert labels is not None
    shape = [1] * len(axes)
    shape[owner] = -1
    return np.broadcast_to(labels.reshape(shape), [axis.size for axis in axes]).reshape(-1)


def _along(blocks: np.ndarray, dim: int) -> np.ndarray:
    return np.moveaxis(blocks, dim, 0).reshape(blocks.shape[dim], -1)[:, 0]


def _constant_axis(blocks: np.ndarray, wide: Sequence[int]) -> int | None:
    """The dimension that alone determines the label, if there is one."""
    for dim in wide:
        slabs = np.moveaxis(blocks, dim, 0).reshape(blocks.shape[dim], -1)
        if (slabs == slabs[:, :1]).all():
            return dim
    return None


def _pick_axis(node: fx.Node, sizes: list[int], wide: Sequence[int], first: int) -> int:
    """The part of a split dimension that may shrink: not a packed one (qkv, gates, shuffle groups)."""
    packed = _packed(node, first, len(sizes))
    if _shuffled(node):
        return wide[-1]
    for dim in wide:
        if first + dim not in packed:
            return dim
    return wide[-1]


def _packed(node: fx.Node, first: int, count: int) -> set[int]:
    """Dimensions of ``node`` that users split or sum over, traced through permutations."""
    found: set[int] = set()
    rank = len(node.meta["val"].shape)
    pending = [(node, list(range(rank)))]
    while pending:
        source, order = pending.pop()
        for user in source.users:
            target = packet(user)
            if operator_of(user).moves == "permutation":
                moved = _permutation(user, len(order))
                pending.append((user, [order[i] for i in moved]))
            elif target in (aten.contiguous, aten.clone, aten.alias):
                pending.append((user, order))
            elif target in (
                aten.unbind,
                aten.select,
                aten.split,
                aten.chunk,
                aten.slice,
                aten.sum,
                aten.softmax,
            ):
                dims = named_arguments(user).get("dim", 0)
                found.update(order[dim] for dim in (dims if isinstance(dims, list | tuple) else [dims]))
            elif target is operator.getitem:
                continue
    return {dim for dim in found if first <= dim < first + count}


def _shuffled(node: fx.Node) -> bool:
    """Whether it is a channel shuffle: the parts of a split dimension are swapped and merged right away."""
    users = list(node.users)
    if len(users) != 1:
        return False
    user = users[0]
    if operator_of(user).moves != "permutation":
        return False
    following = list(user.users)
    while len(following) == 1 and following[0].target in (aten.contiguous.default, aten.clone.default):
        following = list(following[0].users)
    source = node.args[0]
    return (
        len(following) == 1
        and packet(following[0]) in (aten.view, aten.reshape, aten.flatten)
        and isinstance(source, fx.Node)
        and tuple(following[0].meta["val"].shape) == tuple(source.meta["val"].shape)
    )


def _permutation(node: fx.Node, rank: int) -> list[int]:
    """For each dimension of ``node``'s result, the dimension of its input."""
    sizes = tuple(range(2, rank + 2))
    moved = node.target(torch.empty(sizes, device="meta"), *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return [sizes.index(size) for size in moved.shape]


@rule(
    aten.permute, aten.transpose, aten.t, aten.swapaxes, aten.swapdims, aten.movedim, aten.moveaxis,
    aten.numpy_T, aten.mT, aten.adjoint,
)  # fmt: skip
def permute(trace: Trace, call: Call) -> Value:
    """Permute the dimensions."""
    value: Value = call["self"]
    return tuple(value[dim] for dim in _permutation(call.node, len(value)))


@rule(aten.squeeze, aten.unsqueeze)
def squeeze(trace: Trace, call: Call) -> Value:
    """Add or drop dimensions of size 1."""
    shape = call.shapes[0]
    wide = iter([axis for axis in call["self"] if axis.size != 1])
    return tuple(Axis(1) if size == 1 else next(wide) for size in shape)


@rule(aten.expand, aten.expand_as, aten.broadcast_to)
def expand(trace: Trace, call: Call) -> Value:
    """Expand dimensions of size 1 to new labels; literal sizes must follow what these unite with."""
    value, shape = call["self"], call.shapes[0]
    value = (*(Axis(1) for _ in range(len(shape) - len(value))), *value)
    literal = call.raw.get("size")
    if literal is None:
        other = call["other"]
        return tuple(trace.join(call, [axis, like]) for axis, like in zip(value, other, strict=True))
    result = []
    for axis, size, given, expression in zip(value, shape, literal, call.expressions(literal), strict=True):
        grown = axis if axis.size == size else Axis(size, trace.labels.fresh(size))
        if given != -1:
            trace.literal(call, expression, grown)
        result.append(grown)
    return tuple(result)


@rule(
    aten.zeros, aten.ones, aten.full, aten.empty, aten.rand, aten.randn, aten.randint, aten.new_zeros,
    aten.new_ones, aten.new_full, aten.new_empty,
)  # fmt: skip
def constant(trace: Trace, call: Call) -> Value:
    """Create new labels; the literal sizes must follow what these unite with."""
    sizes = call.raw["size"]
    axes = tuple(Axis(size, trace.labels.fresh(size) if size > 1 else None) for size in sizes)
    for axis, expression in zip(axes, call.expressions(sizes), strict=True):
        trace.literal(call, expression, axis)
    return axes


@rule(aten.normal)
def normal(trace: Trace, call: Call) -> Value:
    """Create new labels, or unite those of the means and deviations."""
    return constant(trace, call) if "size" in call.raw else trace.broadcast(call, call.values())


@rule(aten.pixel_shuffle)
def pixel_shuffle(trace: Trace, call: Call) -> Value:
    """Merge each block of ``factor**2`` channels into one."""
    value, factor, shape = call["self"], call["upscale_factor"], call.shapes[0]
    channel = value[-3]
    labels = None
    if channel.labels is not None:
        slabs = channel.labels.reshape(-1, factor**2)
        trace.unite(call, slabs[:, :1], slabs)
        trace.kind(channel.labels, "bundle")
        labels = slabs[:, 0]
    trace.pin(call, value[-2:], "spatial dimension of pixel_shuffle")
    return (*value[:-3], Axis(shape[-3], labels), Axis(shape[-2]), Axis(shape[-1]))


@rule(aten.pixel_unshuffle)
def pixel_unshuffle(trace: Trace, call: Call) -> Value:
    """Split each channel into a block of ``factor**2``."""
    value, factor, shape = call["self"], call["downscale_factor"], call.shapes[0]
    channel = value[-3]
    labels = None if channel.labels is None else np.repeat(channel.labels, factor**2)
    trace.pin(call, value[-2:], "spatial dimension of pixel_unshuffle")
    return (*value[:-3], Axis(shape[-3], labels), Axis(shape[-2]), Axis(shape[-1]))


@rule(aten.channel_shuffle, aten.native_channel_shuffle)
def channel_shuffle(trace: Trace, call: Call) -> Value:
    """Swap groups and the positions within them; all groups keep equal widths."""
    value: Value = call["self"]
    groups = call["groups"]
    channel = value[1]
    if channel.labels is None:
        return value
    rows = channel.labels.reshape(groups, -1)
    trace.unite(call, rows, rows[0])
    trace.kind(channel.labels, "bundle")
    return (value[0], Axis(channel.size, rows.T.reshape(-1)), *value[2:])
