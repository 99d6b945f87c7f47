"""What contractions read and compute, as matrices: ``Y = X W^T`` in each group.

``X`` is ``[groups, rows, features]``, ``Y`` is ``[groups, rows, out]``: a row is one output position of one
example, a feature one kept input channel at one kernel position (im2col), in the order of
:meth:`Contraction.matrix`. A transposed convolution is a convolution over its input with zeros between the
positions, its kernel flipped.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from disparse_structured.graph.operators import named_arguments
from disparse_structured.refit.contraction import Contraction, Operands


def design(contraction: Contraction, node: fx.Node, value: Tensor, places: Tensor) -> Tensor:
    """Return ``[groups, rows, features]`` of one chunk's input ``value``, at ``places`` of the output."""
    read = Operands.of(node)
    if read.kind == "linear":
        rows = value.reshape(-1, value.shape[-1])[places.to(value.device)]
        return rows.index_select(1, contraction.inputs[0].to(value.device))[None]
    given, kernel = named_arguments(node), list(read.shape[2:])
    if value.ndim == len(kernel) + 1:
        value = value[None]
    inputs = contraction.inputs.reshape(-1).to(value.device)
    kept = value if len(inputs) == value.shape[1] else value.index_select(1, inputs)
    dilation, stride = _each(given["dilation"], kernel), _each(given["stride"], kernel)
    if contraction.transposed:
        kept = _between(kept, stride)
        stride = [1] * len(kernel)
    pads = _pads(given, contraction.transposed, kernel, dilation)
    padded = torch.nn.functional.pad(kept, pads) if any(pads) else kept
    index = _reads(list(padded.shape[2:]), kernel, stride, dilation, places)
    taken = padded.flatten(2).index_select(2, index.reshape(-1).to(value.device))
    batch, channels = taken.shape[:2]
    taken = taken.reshape(batch, contraction.groups, channels // contraction.groups, *index.shape)
    # [batch, groups, channels, places, kernel] -> [groups, batch * places, channels * kernel]
    return taken.permute(1, 0, 3, 2, 4).reshape(contraction.groups, batch * len(places), -1)


def target(contraction: Contraction, node: fx.Node, result: Tensor, places: Tensor) -> Tensor:
    """Return ``[groups, rows, out]`` of one chunk's ``result``, in the rows of :func:`design`."""
    outputs = contraction.outputs.reshape(-1).to(result.device)
    read = Operands.of(node)
    if read.kind == "linear":
        taken = result.reshape(-1, result.shape[-1])[places.to(result.device)]
        return taken.index_select(1, outputs)[None]
    spatial = len(read.shape) - 2
    if result.ndim == spatial + 1:
        result = result[None]
    taken = result.flatten(2).index_select(2, places.to(result.device)).index_select(1, outputs)
    batch = len(taken)
    taken = taken.reshape(batch, contraction.groups, -1, len(places))
    return taken.permute(1, 0, 3, 2).reshape(contraction.groups, batch * len(places), -1)


def positions(node: fx.Node, result: Tensor) -> tuple[int, int]:
    """Count the output positions of a chunk to choose rows from, and the examples that share each."""
    read = Operands.of(node)
    if read.kind == "linear":
        return result.numel() // max(result.shape[-1], 1), 1
    spatial = len(read.shape) - 2
    return math.prod(result.shape[-spatial:]), result.shape[0] if result.ndim == spatial + 2 else 1


def _each(value: Any, kernel: list[int]) -> list[int]:
    """``value`` for each spatial dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return [int(each) for each in values] * (len(kernel) if len(values) == 1 else 1)


def _pads(given: dict[str, Any], transposed: bool, kernel: list[int], dilation: list[int]) -> list[int]:
    """The input's padding, as ``torch.nn.functional.pad`` takes it: last dimension first."""
    reach = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    if given["padding"] == "valid":
        pairs = [(0, 0) for _ in kernel]
    elif given["padding"] == "same":
        pairs = [(each // 2, each - each // 2) for each in reach]
    else:
        padding = _each(given["padding"], kernel)
        pairs = [(each, each) for each in padding]
        if transposed:
            extra = _each(given["output_padding"], kernel)
            pairs = [
                (far - each, far - each + more) for far, each, more in zip(reach, padding, extra, strict=True)
            ]
    return [side for pair in reversed(pairs) for side in pair]


def _between(value: Tensor, stride: list[int]) -> Tensor:
    """``value`` with ``stride - 1`` zeros between neighboring positions."""
    size = [(extent - 1) * step + 1 for extent, step in zip(value.shape[2:], stride, strict=True)]
    spread = value.new_zeros(*value.shape[:2], *size)
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = value
    return spread


def _reads(
    size: list[int], kernel: list[int], stride: list[int], dilation: list[int], places: Tensor
) -> Tensor:
    """int64 ``[places, kernel]``: where in the flattened input of ``size`` each kernel position reads."""
    corner = torch.zeros(len(places), dtype=torch.int64)
    rest = places.clone()
    for axis in reversed(range(len(kernel))):
        outputs = (size[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        corner += (rest % outputs) * stride[axis] * math.prod(size[axis + 1 :])
        rest = rest // outputs
    offset = torch.zeros(1, dtype=torch.int64)
    for axis, extent in enumerate(kernel):
        steps = torch.arange(extent) * dilation[axis] * math.prod(size[axis + 1 :])
        offset = (offset[:, None] + steps[None]).reshape(-1)
    return corner[:, None] + offset[None]
