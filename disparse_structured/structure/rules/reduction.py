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
    """A removed position adds nothing: a read without weights."""
    value, dims, result = _reduced(call)
    for dim in dims:
        trace.consume(call, "self", dim, value[dim])
    return result()


@rule(
    aten.mean, aten.amax, aten.amin, aten.var, aten.std, aten.linalg_vector_norm, aten.norm, aten.logsumexp,
    aten.prod, aten.any, aten.all, aten.argmax, aten.argmin,
)  # fmt: skip
def statistic(trace: Trace, call: Call) -> Value:
    """The reduced dimensions stay whole: removing positions would change the statistic of the others."""
    value, dims, result = _reduced(call)
    trace.freeze(call, [value[dim] for dim in dims], "a statistic is taken over it")
    return result()


@rule(aten.max, aten.min, aten.var_mean, aten.std_mean)
def several(trace: Trace, call: Call) -> list[Value] | Value:
    """As :func:`statistic`, for several results; ``max`` of two tensors is element-wise."""
    if call.raw.get("other") is not None:
        return trace.broadcast(call, call.values())
    value, dims, result = _reduced(call)
    trace.freeze(call, [value[dim] for dim in dims], "a statistic is taken over it")
    reduced = result()
    return [reduced] * len(call.shapes) if isinstance(call.node.meta["val"], tuple | list) else reduced
