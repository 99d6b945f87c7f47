"""Contractions: linear layers, matrix products, einsum."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from disparse_structured.graph.operators import named_arguments, operator_of, packet, spelled_out
from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, rule
from disparse_structured.structure.weight_scales import SpectralNorm

aten = torch.ops.aten


@rule(aten.linear)
def linear(trace: Trace, call: Call) -> Value:
    """Unite i in ``input[..., i] weight[o, i]``; the output takes o."""
    value, weight = call["input"], call["weight"]
    if len(weight) != 2:
        return trace.unknown(call, "linear layer with a vector of weights")
    trace.unite(call, value[-1].atoms(), weight[1].atoms(), "the network's input")
    outputs = weight[0]
    bias = call["bias"]
    if bias is not None:
        trace.unite(call, outputs.atoms(), bias[0].atoms())
    trace.consume(call, "input", len(value) - 1, value[-1])
    leading = value[:-1]
    trace.multiply(call, 1.0, *leading, outputs, value[-1])
    return (*leading, Axis(outputs.size, outputs.labels))


@rule(aten.matmul, aten.bmm, aten.mm)
def matrix_product(trace: Trace, call: Call) -> Value:
    """Unite k in ``left[..., n, k] right[..., k, m]``, which is read, and the leading dimensions."""
    left, right = call["self"], call["mat2" if "mat2" in call.raw else "other"]
    second = "mat2" if "mat2" in call.raw else "other"
    if len(left) < 2 or len(right) < 2:
        return _with_vector(trace, call, left, right)
    return _product(trace, call, left, right, "self", second)


def _with_vector(trace: Trace, call: Call, left: Value, right: Value) -> Value:
    """``left[..., k] right[k]`` or ``left[k] right[..., k, m]``: unite and read k."""
    dim = max(len(right) - 2, 0)
    trace.unite(call, left[-1].atoms(), right[dim].atoms())
    trace.consume(call, "self", len(left) - 1, left[-1])
    trace.consume(call, "other", dim, right[dim])
    if len(left) == 1 and len(right) == 2:  # computed as a matrix product of one row, which is counted
        trace.multiply(call, 1.0, *right)
    return (*left[:-1], *right[:dim], *right[dim + 1 :])


@rule(aten.addmm, aten.baddbmm)
def add_matrix_product(trace: Trace, call: Call) -> Value:
    """Add a broadcast operand to a matrix product."""
    names = ("mat1", "mat2") if "mat1" in call.raw else ("batch1", "batch2")
    product = _product(trace, call, call[names[0]], call[names[1]], *names)
    return trace.broadcast(call, [product, call["self"]])


def _product(trace: Trace, call: Call, left: Value, right: Value, first: str, second: str) -> Value:
    trace.unite(call, left[-1].atoms(), right[-2].atoms())
    trace.consume(call, first, len(left) - 1, left[-1])
    trace.consume(call, second, len(right) - 2, right[-2])
    leading = trace.broadcast(call, [left[:-2], right[:-2]])
    trace.multiply(call, 1.0, *leading, left[-2], left[-1], right[-1])
    return (*leading, left[-2], right[-1])


@rule(aten.bilinear)
def bilinear(trace: Trace, call: Call) -> Value:
    """Unite i and j in ``input1[..., i] weight[o, i, j] input2[..., j]``; the output takes o."""
    first, second, weight = call["input1"], call["input2"], call["weight"]
    for name, value, axis in (("input1", first, weight[1]), ("input2", second, weight[2])):
        trace.unite(call, value[-1].atoms(), axis.atoms(), "the network's input")
        trace.consume(call, name, len(value) - 1, value[-1])
    if call["bias"] is not None:
        trace.unite(call, weight[0].atoms(), call["bias"][0].atoms())
    names = ("out_features", "in1_features", "in2_features")
    for name, axis in zip(names, weight, strict=True):
        trace.module_number(call, name, axis)
    leading = trace.broadcast(call, [first[:-1], second[:-1]])
    trace.multiply(call, 1.0, *leading, *weight)
    return (*leading, weight[0])


@rule(aten.tensordot)
def tensordot(trace: Trace, call: Call) -> Value:
    """Unite the pairs of dimensions that are summed over, and read them."""
    left, right = call["self"], call["other"]
    summed = [dim % len(left) for dim in call["dims_self"]], [dim % len(right) for dim in call["dims_other"]]
    for i, j in zip(*summed, strict=True):
        trace.unite(call, left[i].atoms(), right[j].atoms())
        trace.consume(call, "self", i, left[i])
        trace.consume(call, "other", j, right[j])
    kept = [axis for i, axis in enumerate(left) if i not in summed[0]]
    trace.multiply(call, 1.0, *left, *(axis for i, axis in enumerate(right) if i not in summed[1]))
    return (*kept, *(axis for i, axis in enumerate(right) if i not in summed[1]))


@rule(aten.cdist)
def distances(trace: Trace, call: Call) -> Value:
    """Unite k in the distances of ``x1[..., n, k]`` from ``x2[..., m, k]``: zeros are no distance."""
    first, second = call["x1"], call["x2"]
    trace.unite(call, first[-1].atoms(), second[-1].atoms())
    trace.consume(call, "x1", len(first) - 1, first[-1])
    trace.consume(call, "x2", len(second) - 1, second[-1])
    leading = trace.broadcast(call, [first[:-2], second[:-2]])
    return (*leading, first[-2], second[-2])


@rule("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_product(trace: Trace, call: Call) -> Value:
    """Unite k in ``rows[s, k] experts[e, k, m]``: each row meets the matrix of one expert."""
    first, second = ("input", "weight") if "weight" in call.raw else ("self", "mat2")
    rows, experts = call[first], call[second]
    if len(rows) != 2 or len(experts) != 3 or call.get("bias") is not None:
        left_alone: Value = trace.unknown(call, "grouped matrix product with a bias, or of other shapes")
        return left_alone
    trace.pin(call, [experts[0], *(call.get("offs") or ())], "one matrix for each expert")
    trace.aligned += [axis.atoms() for axis in (rows[1], experts[2])]
    trace.unite(call, rows[1].atoms(), experts[1].atoms())
    trace.consume(call, first, 1, rows[1])
    trace.consume(call, second, 1, experts[1])
    trace.multiply(call, 1.0, rows[0], rows[1], experts[2])
    return (rows[0], experts[2])


@rule(aten.einsum)
def einsum(trace: Trace, call: Call) -> Value:
    """Unite each letter over the operands; those that the output lacks are read."""
    equation, operands = call["equation"].replace(" ", ""), call["tensors"]
    left, arrow, right = spelled_out(equation, [len(value) for value in operands]).partition("->")
    terms = left.split(",")
    if not arrow or any(len(set(term)) < len(term) for term in terms):
        return trace.unknown(call, f"einsum {equation!r}")
    letters: dict[str, list[Axis]] = {}
    for term, value in zip(terms, operands, strict=True):
        for letter, axis in zip(term, value, strict=True):
            letters.setdefault(letter, []).append(axis)
    joined = {letter: trace.join(call, axes) for letter, axes in letters.items()}
    for item, (term, value) in enumerate(zip(terms, operands, strict=True)):
        for dim, letter in enumerate(term):
            if letter not in right:
                trace.consume(call, "tensors", dim, value[dim], item=item)
    trace.multiply(call, 1.0 if len(terms) > 1 else 0.0, *joined.values())
    return tuple(joined[letter] for letter in right)


@rule(aten.mv)
def matrix_vector(trace: Trace, call: Call) -> Value:
    """``matrix[n, k] vector[k]``: unite and read k; in a spectral norm, keep its value instead."""
    matrix, vector = call["self"], call["vec"]
    trace.unite(call, matrix[1].atoms(), vector[0].atoms())
    norm = _spectral_norm(trace, call.node)
    if norm is None:
        trace.consume(call, "self", 1, matrix[1])
        trace.consume(call, "vec", 0, vector[0])
    else:
        trace.weight_scales.append(norm)
    return (matrix[0],)


@rule(aten.dot, aten.vdot)
def inner(trace: Trace, call: Call) -> Value:
    """``left[k] right[k]``: unite and read k; in a spectral norm, only unite it."""
    second = "other" if "other" in call.raw else "tensor"
    left, right = call["self"], call[second]
    trace.unite(call, left[0].atoms(), right[0].atoms())
    product = call.raw[second]
    if packet(product) is not aten.mv or _spectral_norm(trace, product) is None:
        trace.consume(call, "self", 0, left[0])
        trace.consume(call, second, 0, right[0])
    return ()


def _spectral_norm(trace: Trace, node: fx.Node) -> SpectralNorm | None:
    """Recognizes ``weight @ right`` in ``left @ weight @ right`` of the model's own tensors."""
    products = [user for user in node.users if packet(user) in (aten.dot, aten.vdot)]
    if len(node.users) != 1 or not products:
        return None
    weight, axis = _unfolded(named_arguments(node)["self"])
    vectors = (products[0].args[0], named_arguments(node)["vec"])
    names = [trace.capture.tensors.get(_kept(each).name) for each in (weight, *vectors)]
    if None in names:
        return None
    return SpectralNorm(str(names[0]), str(names[1]), str(names[2]), axis)


def _unfolded(matrix: fx.Node) -> tuple[fx.Node, int]:
    """The tensor that ``matrix`` is a view of, and which of its dimensions the rows are."""
    source, axis = _kept(matrix), 0
    while operator_of(source).moves in ("view", "reshape", "permutation"):
        if operator_of(source).moves == "permutation":
            axis = named_arguments(source)["dims"][0]
        source = _kept(source.args[0])
    return source, axis


def _kept(node: Any) -> Any:
    while operator_of(node).keeps:
        node = node.args[0]
    return node


@rule(aten.outer, aten.ger)
def outer(trace: Trace, call: Call) -> Value:
    """``left[n] right[m]``: pass on both."""
    return (call["self"][0], call["vec2"][0])
