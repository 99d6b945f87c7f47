"""Double precision also in a ``forward`` that asks for less, as norms in float32 do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})


@contextmanager
def double_precision() -> Iterator[None]:
    """Gives float64 to whatever asks for a narrower floating type: casts, sums, new tensors.

    Two networks that are one up to the order of their sums are so to 1e-9 in float64 alone. Where they
    round to float32 in between, a last digit of float64 may decide which way. Torch's default type is the
    whole process's, and is float64 meanwhile.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widening():  # type: ignore[no-untyped-call]  # torch gives its __init__ no types
            yield
    finally:
        torch.set_default_dtype(default)


def has_narrow_dtypes(graph: fx.Graph) -> bool:
    """Whether operators of ``graph`` name floating types narrower than float64, and all are plain ones."""
    if any(isinstance(node.target, HigherOrderOperator) for node in graph.nodes):
        return False
    arguments = (each for node in graph.nodes for each in (*node.args, *node.kwargs.values()))
    return any(isinstance(each, torch.dtype) and each in _NARROW for each in arguments)


class _Widening(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if given.get("dtype") in _NARROW:
            given["dtype"] = torch.float64
        return func(*args, **given)
