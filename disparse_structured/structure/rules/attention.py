"""Fused scaled-dot-product attention."""

from __future__ import annotations

import numpy as np
import torch

from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, rule

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention)
def scaled_dot_product_attention(trace: Trace, call: Call) -> Value:
    """Leading dimensions (heads) meet. The head dimension stays whole: the scale depends on it.

    In grouped-query attention a key head and its value head meet the run of query heads that reads them.
    """
    query, key, value = call["query"], call["key"], call["value"]
    if call.get("enable_gqa"):
        key, value = (_repeated(each, query[-3].size) for each in (key, value))
    trace.unite(call, query[-1].atoms(), key[-1].atoms())
    trace.freeze(call, [query[-1], key[-1]], "head dimension: the attention scale depends on it")
    trace.freeze(call, [key[-2], value[-2]], "token dimension of attention")
    leading = trace.broadcast(call, [query[:-2], key[:-2], value[:-2]])
    mask = call.get("attn_mask")
    if mask is not None:
        trace.freeze(call, mask[-2:], "token dimension of attention")
        leading = trace.broadcast(call, [leading, mask[:-2]])
    if mask is not None or call.get("is_causal"):
        trace.freeze(call, [query[-2]], "token dimension of attention")
    trace.multiply(call, query[-2].size * key[-2].size * query[-1].size, *leading)
    trace.multiply(call, query[-2].size * key[-2].size, *leading, value[-1])
    return (*leading, query[-2], value[-1])


def _repeated(value: Value, heads: int) -> Value:
    """``value`` with every head once for each of ``heads`` query heads that reads it (arXiv:2305.13245)."""
    shared = value[-3]
    if shared.size == 1:  # multi-query: any number of query heads reads the one
        return value
    labels = None if shared.labels is None else np.repeat(shared.labels, heads // shared.size)
    return (*value[:-3], Axis(heads, labels, shared.sample), *value[-2:])
