"""Fused scaled-dot-product attention."""

from __future__ import annotations

import numpy as np
import torch

from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.scales import query_rows
from disparse_structured.structure.tracing import Call, Scaled, Trace, rule

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention)
def scaled_dot_product_attention(trace: Trace, call: Call) -> Value:
    """Unite the leading dimensions (heads); the scale depends on the head dimension, see :func:`_contract`.

    In grouped-query attention, a key head and its value head unite with the query heads that read them.
    """
    query, key, value = call["query"], call["key"], call["value"]
    if call.get("enable_gqa"):
        key, value = (_repeated(each, query[-3].size) for each in (key, value))
    _contract(trace, call, query, key)
    trace.pin(call, [key[-2], value[-2]], "token dimension of attention")
    leading = trace.broadcast(call, [query[:-2], key[:-2], value[:-2]])
    mask = call.get("attn_mask")
    if mask is not None:
        trace.pin(call, mask[-2:], "token dimension of attention")
        leading = trace.broadcast(call, [leading, mask[:-2]])
    if mask is not None or call.get("is_causal"):
        trace.pin(call, [query[-2]], "token dimension of attention")
    trace.multiply(call, query[-2].size * key[-2].size, *leading, query[-1])
    trace.multiply(call, query[-2].size * key[-2].size, *leading, value[-1])
    return (*leading, query[-2], value[-1])


def _contract(trace: Trace, call: Call, query: Value, key: Value) -> None:
    """Unites query and key in the head dimension, which is pinned if heads are the units.

    Otherwise both are read there. An implicit scale must keep its dense value. If the graph cannot state it,
    the layer that produces the query must compensate for the smaller dimension.
    """
    trace.unite(call, query[-1].atoms(), key[-1].atoms())
    reason = "the attention scale depends on it"
    if trace.attention == "head_dim":
        trace.consume(call, "query", len(query) - 1, query[-1])
        trace.consume(call, "key", len(key) - 1, key[-1])
        if call.get("scale") is not None:
            return
        rows = {} if trace.rewritable else query_rows(trace.capture, call.node)
        if not isinstance(rows, str):
            trace.scaled.append(Scaled(call.node.name, query[-1], rows))
            return
        reason += f", and {rows}"
    trace.pin(call, [query[-1], key[-1]], f"head dimension: {reason}")


def _repeated(value: Value, heads: int) -> Value:
    """``value`` with each head repeated for every one of the ``heads`` that reads it (arXiv:2305.13245)."""
    shared = value[-3]
    if shared.size == 1:  # multi-query: all query heads read it
        return value
    labels = None if shared.labels is None else np.repeat(shared.labels, heads // shared.size)
    return (*value[:-3], Axis(heads, labels, shared.sample), *value[-2:])
