"""Reductions over dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, rule

aten = torch.ops.aten


def _reduced(call: Call) -> tuple[Value, list[int], Callable[[], Value]]:
    value = call["self"]
    dims = call.get("dim")
    if dims is None or dims == []:
        chosen = list(range(len(value)))
    else:
        chosen = [dim % len(value) for dim in (dims if isinstance(dims, list | tuple) else [dims])]

    def result() -> Value:
        if call.get("keepdim"):
            return tuple(Axis(1) if i in chosen else axis for i, axis in enumerate(value))
        return tuple(axis for i, axis in enumerate(value) if i not in chosen)

    return value, chosen, result


@rule(aten.sum, aten.nansum, aten.count_nonzero)
def total(trace: Trace, call: Call) -> Value:
    """Record a read without weights: a removed position adds nothing."""
    value, dims, result = _reduced(call)
    for dim in dims:
        trace.consume(call, "self", dim, value[dim])
    return result()


@rule(
    aten.mean, aten.nanmean, aten.amax, aten.amin, aten.var, aten.std, aten.linalg_vector_norm,
    aten.linalg_norm, aten.norm, aten.logsumexp, aten.prod,
)  # fmt: skip
def statistic(trace: Trace, call: Call) -> Value:
    """Let one reduced dimension shrink: the statistic covers its kept positions."""
    value, dims, result = _reduced(call)
    _average(trace, call, value, dims)
    return result()


@rule(aten.var_mean, aten.std_mean, aten.aminmax)
def statistics(trace: Trace, call: Call) -> list[Value]:
    """Apply :func:`statistic` for two results."""
    value, dims, result = _reduced(call)
    _average(trace, call, value, dims)
    return [result()] * 2


@rule(aten.quantile, aten.nanquantile)
def quantile(trace: Trace, call: Call) -> Value:
    """Apply :func:`statistic`; several quantiles come first."""
    several = call["q"] if isinstance(call["q"], tuple) else ()
    return (*several, *statistic(trace, call))


@rule(aten.cosine_similarity, aten.linalg_vecdot)
def similarity(trace: Trace, call: Call) -> Value:
    """Unite the dimension that is summed over, which is read: a removed position adds nothing."""
    first, second = ("x1", "x2") if "x1" in call.raw else ("x", "y")
    rank = max(len(call[first]), len(call[second]))
    dim = call["dim"] % rank - rank
    joined = trace.broadcast(call, [call[first], call[second]])
    for name in (first, second):
        if len(call[name]) < -dim or call[name][dim].size != joined[dim].size:
            trace.pin(call, [joined[dim]], "a sum over it meets a single position")
        else:
            trace.consume(call, name, len(call[name]) + dim, call[name][dim])
    return tuple(axis for i, axis in enumerate(joined) if i != rank + dim)


def _average(trace: Trace, call: Call, value: Value, dims: list[int]) -> None:
    labeled = [dim for dim in dims if value[dim].labels is not None]
    for dim in labeled[:1]:
        trace.consume(call, "self", dim, value[dim])
    trace.pin(call, [value[dim] for dim in labeled[1:]], "a statistic is taken over it")


@rule(aten.any, aten.all, aten.argmax, aten.argmin)
def position(trace: Trace, call: Call) -> Value:
    """Pin the reduced dimensions: positions would be renumbered."""
    value, dims, result = _reduced(call)
    trace.pin(call, [value[dim] for dim in dims], "a position in it is computed")
    return result()


@rule(aten.max, aten.min, aten.median, aten.nanmedian, aten.mode)
def extreme(trace: Trace, call: Call) -> Any:
    """Apply :func:`statistic`, or :func:`position` if the positions are read; two tensors broadcast."""
    if call.raw.get("other") is not None:
        return trace.broadcast(call, call.values())
    if not isinstance(call.node.meta["val"], tuple | list):
        return statistic(trace, call)
    positions_read = any(user.users for user in call.node.users if user.args[1] == 1)
    values: Value = (position if positions_read else statistic)(trace, call)
    return [values, values]


@rule(aten.kthvalue)
def kth(trace: Trace, call: Call) -> list[Value]:
    """Pin the reduced dimension, of which a fixed number of positions counts."""
    value, dims, result = _reduced(call)
    trace.pin(call, [value[dim] for dim in dims], "its order matters")
    return [result()] * 2


@rule(
    aten.sort, aten.topk, aten.argsort, aten.diff, aten.cumsum, aten.cumprod, aten.cummax, aten.cummin,
    aten.logcumsumexp, aten.tril, aten.triu,
)  # fmt: skip
def along(trace: Trace, call: Call) -> list[Value] | Value:
    """Pin the dimensions whose order matters; pass on the others."""
    value, shapes = call["self"], call.shapes
    if call.get("prepend") or call.get("append"):
        return trace.unknown(call, "differences of several tensors")
    dim = call.get("dim")
    ordered = {len(value) - 2, len(value) - 1} if dim is None else {dim % len(value)} if value else set()
    trace.pin(call, [value[each] for each in ordered], "its order matters")
    results = [
        tuple(axis if axis.size == size else Axis(size) for axis, size in zip(value, shape, strict=True))
        for shape in shapes
    ]
    return results if isinstance(call.node.meta["val"], tuple | list) else results[0]
