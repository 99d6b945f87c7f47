"""Fourier transforms, and complex numbers as pairs of real ones."""

from __future__ import annotations

import torch

from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, plain, rule

aten = torch.ops.aten

_TRANSFORMS = (
    "fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 hfft2 ihfft2 fftn ifftn rfftn irfftn hfftn "
    "ihfftn fftshift ifftshift"
).split()


@rule(*[getattr(aten, f"fft_{name}") for name in _TRANSFORMS if hasattr(aten, f"fft_{name}")])
def transform(trace: Trace, call: Call) -> Value:
    """Pin the dimensions that are transformed, by default the last ones; pass on the others."""
    value, dims, sizes = call["self"], call["dim"], call.get("s")
    if dims is None:
        dims = range(-len(value if sizes is None else sizes), 0)
    chosen = {dim % len(value) for dim in ([dims] if isinstance(dims, int) else dims)}
    trace.pin(call, [value[dim] for dim in chosen], "a Fourier transform runs along it")
    return tuple(
        Axis(size) if i in chosen and size != axis.size else Axis(size, axis.labels, axis.sample)
        for i, (axis, size) in enumerate(zip(value, call.shapes[0], strict=True))
    )


@rule(aten.stft, aten.istft)
def short_time_transform(trace: Trace, call: Call) -> Value:
    """Pin all but the dimension of signals, if there is one."""
    value, shape = call["self"], call.shapes[0]
    own = 1 if call.operator.startswith("aten.stft") else 2
    leading = value[: max(len(value) - own, 0)]
    trace.pin(call, [*value[len(leading) :], *(call["window"] or ())], "a Fourier transform runs along it")
    return (*leading, *plain(shape[len(leading) :]))


@rule(aten.view_as_real)
def as_pairs(trace: Trace, call: Call) -> Value:
    """Add a dimension for the real and the imaginary part."""
    return (*call["self"], Axis(2))


@rule(aten.view_as_complex)
def from_pairs(trace: Trace, call: Call) -> Value:
    """Drop the dimension of the real and the imaginary part, which is pinned."""
    value: Value = call["self"]
    trace.pin(call, value[-1:], "holds the real and the imaginary part")
    return value[:-1]
