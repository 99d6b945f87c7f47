"""Convolutions: plain, grouped, depthwise (with multiplier), transposed, dilated; 1, 2 and 3 dimensions."""

from __future__ import annotations

import math

import numpy as np
import torch

from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, plain, rule

aten = torch.ops.aten


@rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(trace: Trace, call: Call) -> Value:
    """Input channels unite with weight dimension 1, the output takes weight dimension 0."""
    value, weight = call["input"], call["weight"]
    channel = len(value) - (len(weight) - 1)
    groups = call["groups"]
    inputs, outputs = value[channel], weight[0]
    if groups == 1:
        trace.unite(call, inputs.atoms(), weight[1].atoms(), "the network's input")
    elif weight[1].size == 1:
        _depthwise(trace, call, inputs, outputs, groups)
    else:
        _same_in_every_group(trace, call, inputs.atoms(), groups, weight[1].atoms())
        _same_in_every_group(trace, call, outputs.atoms(), groups)
    return _finish(trace, call, value, weight, outputs)


@rule(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
def transposed(trace: Trace, call: Call) -> Value:
    """Input channels unite with weight dimension 0, the output takes weight dimension 1, once per group."""
    value, weight = call["input"], call["weight"]
    channel = len(value) - (len(weight) - 1)
    groups = call["groups"]
    inputs = value[channel]
    trace.unite(call, inputs.atoms(), weight[0].atoms(), "the network's input")
    outputs = weight[1]
    if groups > 1 and inputs.size == groups:
        slabs = np.repeat(inputs.atoms(), weight[1].size)
        trace.freeze(call, [weight[1]], "channel multiplier of a depthwise convolution")
        outputs = Axis(len(slabs), slabs if inputs.labels is not None else None)
        trace.literal(call, call.expressions([groups])[0], inputs)
    elif groups > 1:
        _same_in_every_group(trace, call, inputs.atoms(), groups)
        outputs = Axis(weight[1].size * groups, np.tile(weight[1].atoms(), groups))
        trace.kind(weight[1].atoms(), "bundle")
    return _finish(trace, call, value, weight, outputs)


def _depthwise(trace: Trace, call: Call, inputs: Axis, outputs: Axis, groups: int) -> None:
    slabs = outputs.atoms().reshape(groups, -1)
    trace.unite(call, inputs.atoms()[:, None], slabs)
    if slabs.shape[1] > 1:
        trace.kind(outputs.atoms(), "bundle")
    trace.literal(call, call.expressions([groups])[0], inputs)


def _same_in_every_group(
    trace: Trace, call: Call, atoms: np.ndarray, groups: int, weight: np.ndarray | None = None
) -> None:
    """The same relative index over all groups goes together, so that groups stay equally wide."""
    rows = atoms.reshape(groups, -1)
    trace.unite(call, rows, rows[0] if weight is None else weight)
    trace.kind(atoms, "bundle")


def _finish(trace: Trace, call: Call, value: Value, weight: Value, outputs: Axis) -> Value:
    spatial = len(weight) - 2
    channel = len(value) - spatial - 1
    transposes = "transpose" in call.operator
    trace.freeze(call, value[channel + 1 :], "spatial dimension of a convolution")
    trace.freeze(call, weight[2:], "kernel dimension of a convolution")
    bias = call["bias"]
    if bias is not None:
        trace.unite(call, outputs.atoms(), bias[0].atoms())
    shape = call.shapes[0]
    groups = call["groups"]
    if groups == 1 or weight[1].size > 1 or transposes:
        trace.consume(call, "input", channel, value[channel])
    places = math.prod(
        value[channel + 1 + i].size if transposes else shape[channel + 1 + i] for i in range(spatial)
    )
    coefficient = math.prod(axis.size for axis in weight[2:]) * places * math.prod(shape[:channel])
    per_group = weight[1]
    if transposes:
        trace.multiply(call, coefficient, weight[0], per_group)
    else:
        trace.multiply(call, coefficient, weight[0], per_group)
    result = Axis(shape[channel], outputs.labels)
    return (*value[:channel], result, *plain(shape[channel + 1 :]))
