"""Sliding windows, extracted and merged: unfold and fold."""

from __future__ import annotations

import math

import numpy as np
import torch

from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, plain, rule

aten = torch.ops.aten


@rule(aten.unfold)
def windows(trace: Trace, call: Call) -> Value:
    """Pin the dimension of ``Tensor.unfold``'s windows; the last dimension of the result is within them."""
    value, shape = call["self"], call.shapes[0]
    if not value:
        return plain(shape)
    dim = call["dimension"] % len(value)
    trace.pin(call, [value[dim]], "windows along it")
    return (*value[:dim], Axis(shape[dim]), *value[dim + 1 :], Axis(shape[-1]))


@rule(aten.im2col)
def unfold(trace: Trace, call: Call) -> Value:
    """Turn each channel of ``F.unfold`` into a slab with one row per window position."""
    value, shape = call["self"], call.shapes[0]
    channel = value[-3]
    trace.pin(call, value[-2:], "spatial dimension of unfold")
    labels = None if channel.labels is None else np.repeat(channel.labels, math.prod(call["kernel_size"]))
    if labels is not None:
        trace.kind(labels, "bundle")
    return (*value[:-3], Axis(shape[-2], labels), Axis(shape[-1]))


@rule(aten.col2im)
def fold(trace: Trace, call: Call) -> Value:
    """Unite the rows of each channel's slab, which ``F.fold`` sums."""
    value, shape = call["self"], call.shapes[0]
    rows = value[-2]
    trace.pin(call, value[-1:], "windows of fold")
    labels = None
    if rows.labels is not None:
        slabs = rows.labels.reshape(shape[-3], -1)
        trace.unite(call, slabs[:, :1], slabs)
        trace.kind(rows.labels, "bundle")
        labels = slabs[:, 0]
    return (*value[:-2], Axis(shape[-3], labels), *plain(shape[-2:]))
