"""Pooling and resizing, which preserve channels."""

from __future__ import annotations

import torch

from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, plain, rule

aten = torch.ops.aten

_NAMES = (
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "_adaptive_avg_pool2d lp_pool2d max_pool2d_with_indices upsample_nearest1d upsample_nearest2d "
    "upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d upsample_nearest3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d adaptive_max_pool3d"
).split()


@rule(*[getattr(aten, name) for name in _NAMES if hasattr(aten, name)])
def resample(trace: Trace, call: Call) -> Value | list[Value]:
    """Pin the last one, two or three dimensions, which are spatial."""
    value = call.get("self") or call["input"]
    spatial = next(count for count in (1, 2, 3) if f"{count}d" in call.operator)
    trace.pin(call, value[-spatial:], "spatial dimension of a resampling")
    results = [(*value[:-spatial], *plain(shape[-spatial:])) for shape in call.shapes]
    return results if isinstance(call.node.meta["val"], tuple | list) else results[0]


@rule(aten.max_unpool2d, aten.max_unpool3d)
def unpool(trace: Trace, call: Call) -> Value:
    """Unite channels with those of the positions that a pooling found; pin spatial dimensions."""
    spatial = 2 if "2d" in call.operator else 3
    joined = trace.broadcast(call, [call["self"], call["indices"]])
    trace.pin(call, joined[-spatial:], "spatial dimension of a resampling")
    return (*joined[:-spatial], *plain(call.shapes[0][-spatial:]))


@rule(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d)
def grid_sampler(trace: Trace, call: Call) -> Value:
    """Pass on batch and channels; pin spatial dimensions and the grid."""
    value, grid = call["input"], call["grid"]
    trace.pin(call, value[2:], "spatial dimension of a resampling")
    trace.pin(call, grid[1:], "used as sampling positions")
    return (trace.join(call, [value[0], grid[0]]), value[1], *plain(call.shapes[0][2:]))


@rule("torchvision::roi_align", "torchvision::roi_pool")
def region_pool(trace: Trace, call: Call) -> Value | list[Value]:
    """Pass on channels; pin spatial dimensions and the regions."""
    value = call["input"]
    trace.pin(call, [*value[:1], *value[2:]], "spatial dimension of a resampling")
    trace.pin(call, call["rois"], "used as sampling positions")
    results: list[Value] = [(Axis(shape[0]), value[1], *plain(shape[2:])) for shape in call.shapes]
    return results if isinstance(call.node.meta["val"], tuple | list) else results[0]
