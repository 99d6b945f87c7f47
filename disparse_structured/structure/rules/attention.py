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
    """Leading dimensions (heads) meet. The scale depends on the head dimension, see :func:`_contract`.

    In grouped-query attention a key head and its value head meet the run of query heads that reads them.
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
    """Query and key meet in the head dimension, which stays whole where heads are the units.

    Otherwise both are read there. A scale that was not given is that of the dense network, so that what makes
    the query must make up for the smaller dimension, if the graph cannot say so.
    """
    trace.unite(call, query[-1].atoms(), key[-1].atoms())
    why = "the attention scale depends on it"
    if trace.attention == "head_dim":
        trace.consume(call, "query", len(query) - 1, query[-1])
        trace.consume(call, "key", len(key) - 1, key[-1])
        if call.get("scale") is not None:
            return
        rows = {} if trace.rewritable else query_rows(trace.capture, call.node)
        if not isinstance(rows, str):
            trace.scaled.append(Scaled(call.node.name, query[-1], rows))
            return
        why += f", and {rows}"
    trace.pin(call, [query[-1], key[-1]], f"head dimension: {why}")


def _repeated(value: Value, heads: int) -> Value:
    """``value`` with every head once for each of ``heads`` query heads that reads it (arXiv:2305.13245)."""
    shared = value[-3]
    if shared.size == 1:  # multi-query: any number of query heads reads the one
        return value
    labels = None if shared.labels is None else np.repeat(shared.labels, heads // shared.size)
    return (*value[:-3], Axis(heads, labels, shared.sample), *value[-2:])
