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
    """Unite input channels with weight dimension 1; the output takes weight dimension 0."""
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
    """Unite input channels with weight dimension 0; the output takes weight dimension 1 once per group."""
    value, weight = call["input"], call["weight"]
    channel = len(value) - (len(weight) - 1)
    groups = call["groups"]
    inputs = value[channel]
    trace.unite(call, inputs.atoms(), weight[0].atoms(), "the network's input")
    outputs = weight[1]
    if groups > 1 and inputs.size == groups:
        slabs = np.repeat(inputs.atoms(), weight[1].size)
        trace.pin(call, [weight[1]], "channel multiplier of a depthwise convolution")
        outputs = Axis(len(slabs), slabs if inputs.labels is not None else None)
        trace.literal(call, call.expressions([groups])[0], inputs)
    elif groups > 1:
        _same_in_every_group(trace, call, inputs.atoms(), groups)
        outputs = Axis(weight[1].size * groups, np.tile(weight[1].atoms(), groups))
        if not _alike(weight[0].atoms(), groups):
            trace.kind(weight[1].atoms(), "bundle")
    return _finish(trace, call, value, weight, outputs)


@rule("torchvision::deform_conv2d")
def deformable(trace: Trace, call: Call) -> Value:
    """Apply :func:`convolution`; offsets and masks hold positions, so they are pinned."""
    value, weight, groups = call["input"], call["weight"], call["groups"]
    inputs, outputs = value[1], weight[0]
    if groups == 1:
        trace.unite(call, inputs.atoms(), weight[1].atoms(), "the network's input")
        trace.consume(call, "input", 1, inputs)
    elif weight[1].size == 1:
        _depthwise(trace, call, inputs, outputs, groups)
    else:
        _same_in_every_group(trace, call, inputs.atoms(), groups, weight[1].atoms())
        _same_in_every_group(trace, call, outputs.atoms(), groups)
        trace.consume(call, "input", 1, inputs)
    if call["offset_groups"] > 1:
        _same_in_every_group(trace, call, inputs.atoms(), call["offset_groups"])
    trace.pin(call, [*call["offset"], *call["mask"]], "used as sampling positions")
    trace.pin(call, [*value[2:], *weight[2:]], "spatial dimension of a convolution")
    trace.unite(call, outputs.atoms(), call["bias"][0].atoms())
    for name, axis in (("in_channels", inputs), ("out_channels", outputs)):
        trace.module_number(call, name, axis)
    shape = call.shapes[0]
    sides = math.prod(axis.size for axis in weight[2:]) * math.prod(shape[2:])
    trace.multiply(call, shape[0] * sides, outputs, weight[1])
    return (value[0], Axis(shape[1], outputs.labels), *plain(shape[2:]))


def _depthwise(trace: Trace, call: Call, inputs: Axis, outputs: Axis, groups: int) -> None:
    slabs = outputs.atoms().reshape(groups, -1)
    trace.unite(call, inputs.atoms()[:, None], slabs)
    if slabs.shape[1] > 1:
        trace.kind(outputs.atoms(), "bundle")
    trace.literal(call, call.expressions([groups])[0], inputs)


def _same_in_every_group(
    trace: Trace, call: Call, atoms: np.ndarray, groups: int, weight: np.ndarray | None = None
) -> None:
    """Unites each relative index over all groups, so that the groups keep equal widths."""
    rows = atoms.reshape(groups, -1)
    trace.unite(call, rows, rows[0] if weight is None else weight)
    if not _alike(atoms, groups):
        trace.kind(atoms, "bundle")


def _alike(atoms: np.ndarray, groups: int) -> bool:
    """Whether all groups hold the same units, as where each group is an example with its own kernel."""
    rows = atoms.reshape(groups, -1)
    return bool((rows == rows[0]).all())


def _finish(trace: Trace, call: Call, value: Value, weight: Value, outputs: Axis) -> Value:
    spatial = len(weight) - 2
    channel = len(value) - spatial - 1
    transposes = "transpose" in call.operator
    pointwise = [_is_pointwise(call, weight, i) for i in range(spatial)]
    mixed = [axis for axis, alone in zip(value[channel + 1 :], pointwise, strict=True) if not alone]
    trace.pin(call, mixed, "spatial dimension of a convolution")
    trace.pin(call, weight[2:], "kernel dimension of a convolution")
    bias = call["bias"]
    if bias is not None:
        trace.unite(call, outputs.atoms(), bias[0].atoms())
    shape = call.shapes[0]
    groups = call["groups"]
    if groups == 1 or weight[1].size > 1 or transposes:
        trace.consume(call, "input", channel, value[channel])
    places = [
        value[channel + 1 + i] if transposes or pointwise[i] else Axis(shape[channel + 1 + i])
        for i in range(spatial)
    ]
    kernel = math.prod(axis.size for axis in weight[2:])
    trace.multiply(call, kernel, *value[:channel], weight[0], weight[1], *places)
    result = Axis(shape[channel], outputs.labels)
    if spatial == 2 and math.prod(shape[channel + 1 :]) > 1:
        trace.convolved += [value[channel].atoms(), result.atoms()]
    axes = plain(shape[channel + 1 :])
    return (
        *value[:channel],
        result,
        *(place if alone else axis for place, alone, axis in zip(places, pointwise, axes, strict=True)),
    )


def _is_pointwise(call: Call, weight: Value, i: int) -> bool:
    """Whether each position along spatial dimension ``i`` depends only on the same input position."""

    def at(name: str) -> int | str:
        given = call[name]
        if isinstance(given, list | tuple):
            return int(given[i] if len(given) > 1 else given[0])
        return given if isinstance(given, str) else int(given)

    return weight[2 + i].size == 1 and at("stride") == 1 and at("padding") in (0, "same", "valid")
