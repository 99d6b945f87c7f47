"""Counts costs on a real model, independently of the analytic cost model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from disparse_structured.data.batches import batch_size
from disparse_structured.data.call import call
from disparse_structured.data.modes import eval_mode, without_fast_path
from disparse_structured.graph.side_effects import undone


def count_macs(model: nn.Module, example_inputs: tuple[Any, ...]) -> int:
    """Count the multiply-accumulates of one forward pass per example.

    The formulas are those of ``torch.utils.flop_counter``: convolutions, linear layers, matrix products,
    attention and recurrent layers count; element-wise work does not. The model runs once, in eval mode,
    without gradients and without torch's fused transformer layers, for which there is no formula. It is not
    changed.
    """
    with (
        undone(model),
        eval_mode(model),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        _products_of(model),
        without_fast_path(),
        _Counter() as counter,
    ):
        call(model, example_inputs)
    flops: float = counter.flops
    return round(flops / 2 / batch_size(example_inputs))


class _Counter(TorchDispatchMode):
    """Adds up the floating-point operations of every operator for which there is a formula."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operator = func._overloadpacket
        if operator in flop_registry:
            self.flops += flop_registry[operator](*args, **kwargs, out_val=result)
        elif str(operator) == "torchvision.deform_conv2d":
            weight = args[1]
            self.flops += 2.0 * result.numel() * weight[0].numel()
        return result


@contextmanager
def _products_of(model: nn.Module) -> Iterator[None]:
    """Makes recurrent layers compute by matrix products, because the counter ignores fused kernels."""
    fusing: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        fusing = ()
    before = [backend.enabled for backend in fusing]
    try:
        for backend in fusing:
            backend.enabled = False
        yield
    finally:
        for backend, enabled in zip(fusing, before, strict=True):
            backend.enabled = enabled


def count_parameters(model: nn.Module) -> int:
    """Count the parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
