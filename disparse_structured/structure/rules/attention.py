"""Fused scaled-dot-product attention."""

from __future__ import annotations

import torch

from disparse_structured.structure.labels import Value
from disparse_structured.structure.tracing import Call, Trace, rule

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention)
def scaled_dot_product_attention(trace: Trace, call: Call) -> Value:
    """Leading dimensions (heads) meet. The head dimension stays whole: the scale depends on it."""
    query, key, value = call["query"], call["key"], call["value"]
    if call.get("enable_gqa"):
        return trace.unknown(call, "grouped-query attention")  # type: ignore[no-any-return]
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
