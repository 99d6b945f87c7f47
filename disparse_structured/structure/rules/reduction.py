"""Reductions over dimensions."""

from __future__ import annotations

from collections.abc import Callable

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


@rule(aten.sum)
def total(trace: Trace, call: Call) -> Value:
    """Record a read without weights: a removed position adds nothing."""
    value, dims, result = _reduced(call)
    for dim in dims:
        trace.consume(call, "self", dim, value[dim])
    return result()


@rule(
    aten.mean, aten.amax, aten.amin, aten.var, aten.std, aten.linalg_vector_norm, aten.norm, aten.logsumexp,
    aten.prod,
)  # fmt: skip
def statistic(trace: Trace, call: Call) -> Value:
    """Let one reduced dimension shrink: the statistic covers its kept positions."""
    value, dims, result = _reduced(call)
    _average(trace, call, value, dims)
    return result()


@rule(aten.var_mean, aten.std_mean)
def statistics(trace: Trace, call: Call) -> list[Value]:
    """Apply :func:`statistic` for two results."""
    value, dims, result = _reduced(call)
    _average(trace, call, value, dims)
    return [result()] * 2


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
def extreme(trace: Trace, call: Call) -> list[Value] | Value:
    """Apply :func:`position` if a dimension is given, else :func:`statistic`; two tensors broadcast."""
    if call.raw.get("other") is not None:
        return trace.broadcast(call, call.values())
    if isinstance(call.node.meta["val"], tuple | list):
        values: Value = position(trace, call)
        return [values] * 2
    only: Value = statistic(trace, call)
    return only
