"""Batch, instance, layer, group and RMS normalization; softmax."""

from __future__ import annotations

from typing import Any

import torch

from disparse_structured.structure.labels import Value
from disparse_structured.structure.tracing import Call, Trace, rule
from disparse_structured.structure.weight_scales import WeightNorm

aten = torch.ops.aten


@rule(aten.batch_norm, aten.instance_norm, aten.native_batch_norm, aten._native_batch_norm_legit_no_training)
def per_channel_statistics(trace: Trace, call: Call) -> Value:
    """Unite dimension 1 with every per-channel tensor: each channel has its own statistics."""
    value = call["input"]
    channel = value[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = call.get(name)
        if tensor is not None:
            channel = trace.join(call, [channel, tensor[0]])
    trace.module_number(call, "num_features", channel)
    if call.get("training") or call.get("use_input_stats"):
        _statistics_over(trace, call, value)
    return (value[0], channel, *value[2:])


def _statistics_over(trace: Trace, call: Call, value: Value) -> None:
    """Lets one other dimension (such as a weight's inputs) shrink: statistics cover the kept positions."""
    others = [dim for dim in range(len(value)) if dim != 1 and value[dim].labels is not None]
    for dim in others[:1]:
        trace.consume(call, "input", dim, value[dim])
    trace.pin(call, [value[dim] for dim in others[1:]], "a statistic is taken over it")


@rule(aten.layer_norm, aten.rms_norm)
def layer_norm(trace: Trace, call: Call) -> Value:
    """Pin several normalized dimensions, but let a single one shrink: statistics cover its kept positions."""
    value: Value = call["input"]
    shape = call["normalized_shape"]
    if len(shape) != 1:
        for name in ("weight", "bias"):
            tensor = call.get(name)
            if tensor is not None:
                trace.pin(call, tensor, "layer norm over several dimensions")
        trace.pin(call, value[-len(shape) :], "layer norm over several dimensions")
        return value
    channel = value[-1]
    for name in ("weight", "bias"):
        tensor = call.get(name)
        if tensor is not None:
            channel = trace.join(call, [channel, tensor[0]])
    trace.literal(call, call.expressions(list(shape))[0], channel)
    trace.consume(call, "input", len(value) - 1, channel)
    return (*value[:-1], channel)


@rule(aten.group_norm)
def group_norm(trace: Trace, call: Call) -> Value:
    """Unite each relative index over all groups of channels that share statistics."""
    value, groups = call["input"], call["num_groups"]
    channel = value[1]
    for name in ("weight", "bias"):
        tensor = call.get(name)
        if tensor is not None:
            channel = trace.join(call, [channel, tensor[0]])
    if channel.labels is not None and groups > 1:
        rows = channel.labels.reshape(groups, -1)
        trace.unite(call, rows, rows[0])
        trace.kind(channel.labels, "bundle")
    trace.module_number(call, "num_channels", channel)
    trace.consume(call, "input", 1, channel)
    return (value[0], channel, *value[2:])


@rule(aten.softmax, aten.log_softmax, aten._softmax, aten._log_softmax)
def softmax(trace: Trace, call: Call) -> Value:
    """Pin the normalized dimension; pass on the others."""
    value, dim = call["self"], call["dim"]
    trace.pin(call, [value[dim]], "softmax over it")
    return value


@rule(aten._weight_norm)
def weight_norm(trace: Trace, call: Call) -> Any:
    """Unite the outputs of direction and magnitude; surgery rescales the magnitude of what remains."""
    direction, magnitude, dim = call["v"], call["g"], call["dim"]
    names = [trace.capture.tensors.get(getattr(call.raw[name], "name", "")) for name in ("v", "g")]
    if None in names:
        return trace.unknown(call, "weight norm of a computed tensor")
    trace.weight_scales.append(WeightNorm(str(names[0]), str(names[1]), dim))
    if dim < 0:
        return direction
    outputs = trace.join(call, [direction[dim], magnitude[dim]])
    return (*direction[:dim], outputs, *direction[dim + 1 :])
