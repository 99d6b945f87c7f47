"""Fused attention whose scale depends on the head dimension, and the weights that compensate when it shrinks.

``scaled_dot_product_attention`` divides by the square root of the head dimension unless it is given a scale.
The masked twin divides by the dense network's. A pruned graph is given that scale. A pruned module
computes the same if its queries shrink by the square root of the kept share; the weights of the layer
that produces them absorb the factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from disparse_structured.graph.capture import Capture
from disparse_structured.graph.index_tracking import (
    is_identity,
    position_ids,
    rearranges,
    trace_positions,
)
from disparse_structured.graph.operators import named_arguments, operator_of, packet
from disparse_structured.structure.tracing import Call

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class AttentionScale:
    """``node`` is attention that divides by the root of its head dimension, ``size`` when dense.

    ``row`` is the head dimension's row in the cost model's widths. ``query`` holds, by parameter, the
    positions along dimension 0 that produce the query, int64 ``[n]``; it is empty if the graph is pruned.
    """

    node: str
    size: int
    row: int
    query: Mapping[str, np.ndarray]


def query_rows(capture: Capture, attention: fx.Node) -> dict[str, np.ndarray] | str:
    """Find the parameter positions that only the query of ``attention`` is proportional to.

    int64 along dimension 0, by parameter. If there are none, the reason as text.
    """
    query = producer = named_arguments(attention)["query"]
    while rearranges(producer) or is_identity(producer):
        producer = producer.args[0]
    call = Call(producer, lambda item: item)
    along = operator_of(producer).proportional_along
    if along is None or call.raw["weight"] is None:
        return f"the query comes out of {call.operator} without a weight to make up for it"
    shape = tuple(producer.meta["val"].shape)
    dim = along % len(shape)
    wanted, others = np.empty(0, dtype=np.int64), [np.empty(0, dtype=np.int64)]
    for reader, node, index in trace_positions(producer, position_ids(shape, dim, dim + 1)):
        rows = np.unique(index.numpy())
        if reader is attention and node is query:
            wanted = rows
            others += [rows] * (attention.args.count(query) - 1)
        elif reader.op != "output" or node in capture.outputs:
            others.append(rows)
    if np.isin(wanted, np.concatenate(others)).any():
        return "the query is read elsewhere too"
    found: dict[str, np.ndarray] = {}
    for weight in (call.raw["weight"], call.raw.get("bias")):
        start = 0
        for piece in () if weight is None else _pieces(weight):
            stop = start + piece.meta["val"].shape[0]
            rows = wanted[(wanted >= start) & (wanted < stop)] - start
            name = capture.tensors.get(piece.name)
            if rows.size and (name is None or _uses(capture, name) > 1):
                return f"the weights of {call.operator}, which makes the query, are computed or shared"
            if rows.size and name is not None:
                found[name] = rows
            start = stop
    return found


def _pieces(weight: fx.Node) -> list[fx.Node]:
    """The nodes that ``weight`` was concatenated from along dimension 0."""
    given = named_arguments(weight)
    if packet(weight) is not aten.cat or given["dim"] != 0 or len(weight.users) > 1:
        return [weight]
    return [piece for each in given["tensors"] for piece in _pieces(each)]


def _uses(capture: Capture, tensor: str) -> int:
    """The number of operators that read a parameter under any of its names."""
    return sum(
        len(node.users)
        for node in capture.graph.find_nodes(op="placeholder")
        if capture.tensors.get(node.name) == tensor
    )
