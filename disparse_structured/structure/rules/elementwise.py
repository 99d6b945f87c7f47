"""Operators that act position by position: activations, arithmetic with broadcasting, dropout, casts."""

from __future__ import annotations

from typing import Any

import torch

from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, rule

aten = torch.ops.aten

_SAME_SHAPE = (
    "abs acos alias asin atan bernoulli ceil celu clamp_min clamp_max clone contiguous cos cosh detach "
    "detach_ dropout dropout_ alpha_dropout feature_dropout elu erf exp expm1 floor gelu hardsigmoid "
    "hardswish hardtanh leaky_relu lift_fresh_copy log log1p log2 log_sigmoid logical_not logit mish neg "
    "ones_like positive rand_like randn_like reciprocal relu relu6 round rsqrt selu sigmoid sign silu "
    "sin sinh softplus softshrink sqrt square tan tanh tanhshrink threshold zeros_like "
    "full_like isfinite isnan bitwise_not hardsigmoid_ hardswish_ hardtanh_ relu_ silu_ leaky_relu_ "
    "sigmoid_ gelu_ elu_ mish_ relu6_ _to_copy nan_to_num empty_like hardshrink float "
    "half double lift_fresh fill fill_ zero_ exp2 log10 trunc frac isinf sinc signbit rrelu asinh acosh "
    "atanh deg2rad rad2deg i0 lgamma digamma erfc erfinv feature_alpha_dropout real imag angle conj _conj "
    "conj_physical resolve_conj resolve_neg sgn uniform exponential geometric cauchy log_normal random "
    "randint_like poisson"
).split()

_BROADCASTING = (
    "add sub rsub mul div true_divide floor_divide remainder fmod pow maximum minimum where lerp addcmul "
    "addcdiv atan2 clamp eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or "
    "masked_fill copysign hypot add_ sub_ mul_ div_ masked_fill_ clamp_ copy copy_ fmax fmin xlogy logaddexp "
    "heaviside ldexp logaddexp2 float_power nextafter isclose complex polar"
).split()


@rule(*[getattr(aten, name) for name in (*_SAME_SHAPE, *_BROADCASTING) if hasattr(aten, name)])
def elementwise(trace: Trace, call: Call) -> Value:
    """Pass labels on, and unite those of several operands; a fixed operand of the same size pins them."""
    return trace.broadcast(call, call.values())


@rule(aten.broadcast_tensors)
def broadcast_tensors(trace: Trace, call: Call) -> list[Value]:
    """Unite the tensors, each of which gets the common shape."""
    values = call["tensors"]
    return [trace.broadcast(call, values)] * len(values)


@rule(aten.bucketize, aten.searchsorted)
def place(trace: Trace, call: Call) -> Value:
    """Pass labels on; the boundaries are one sorted list, whose positions are counted."""
    boundaries = call.get("boundaries") or call.get("sorted_sequence")
    if len(boundaries) != 1:
        return trace.unknown(call, "boundaries of several rows")
    trace.pin(call, boundaries, "a position in it is computed")
    return call["self"] or ()


@rule(aten.to, aten.type_as)
def cast(trace: Trace, call: Call) -> Value:
    """Pass labels on; a second tensor only provides its dtype and device."""
    return call["self"]


@rule(aten.prelu)
def prelu(trace: Trace, call: Call) -> Value:
    """Unite a weight per channel with dimension 1, and a single weight with nothing."""
    value: Value = call["self"]
    weight = call["weight"]
    if weight[0].size == 1:
        return value
    dim = 1 if len(value) > 1 else 0
    joined = trace.join(call, [value[dim], weight[0]])
    return (*value[:dim], joined, *value[dim + 1 :])


@rule(aten.glu)
def gated_linear_unit(trace: Trace, call: Call) -> Value:
    """Unite the halves element by element."""
    value, dim = call["self"], call["dim"]
    axis = value[dim]
    half = axis.size // 2
    if axis.labels is None:
        gated = Axis(half)
    else:
        trace.unite(call, axis.labels[:half], axis.labels[half:])
        trace.kind(axis.labels, "bundle")
        gated = Axis(half, axis.labels[:half])
    return tuple(gated if i == dim % len(value) else each for i, each in enumerate(value))


@rule(aten._assert_tensor_metadata, aten._assert_async, aten.sym_size)
def no_result(trace: Trace, call: Call) -> Any:
    """Return no value, because checks and sizes hold no data."""
    return None
