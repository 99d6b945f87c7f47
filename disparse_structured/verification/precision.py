"""Double precision even where ``forward`` asks for less, as norms in float32 do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

_WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}


@contextmanager
def double_precision() -> Iterator[None]:
    """Use float64 wherever a narrower type is requested, and complex128: in casts, sums, new tensors.

    Two networks that differ only in the order of their sums agree to 1e-9 only in pure float64. Where they
    round to float32 in between, the last digit of float64 may decide which way. Torch's default type, which
    is process-wide, is float64 meanwhile.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widening():  # type: ignore[no-untyped-call]  # its __init__ has no types
            yield
    finally:
        torch.set_default_dtype(default)


def has_narrow_dtypes(graph: fx.Graph) -> bool:
    """Return whether ``graph`` names types below double precision and has no higher-order operators."""
    if is_nested(graph):
        return False
    arguments = (each for node in graph.nodes for each in (*node.args, *node.kwargs.values()))
    return any(isinstance(each, torch.dtype) and each in _WIDE for each in arguments)


def is_nested(graph: fx.Graph) -> bool:
    """Return whether ``graph`` has higher-order operators, whose own graphs may name floating types."""
    return any(isinstance(node.target, HigherOrderOperator) for node in graph.nodes)


class _Widening(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if (dtype := given.get("dtype")) in _WIDE:
            given["dtype"] = _WIDE[dtype]
        return func(*args, **given)
