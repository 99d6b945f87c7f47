"""Counts costs on a real model, independently of the analytic cost model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from disparse_structured.data.batches import batch_size
from disparse_structured.data.call import call
from disparse_structured.data.modes import eval_mode


def count_macs(model: nn.Module, example_inputs: tuple[Any, ...]) -> int:
    """Count multiply-accumulates per example in one forward pass with ``torch.utils.flop_counter``.

    Convolutions, linear layers, matrix products, attention and recurrent layers count; element-wise
    operations do not. The model runs once, in eval mode, without gradients.
    """
    counter = FlopCounterMode(display=False)
    with eval_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _products_of(model), counter:
        call(model, example_inputs)
    return round(counter.get_total_flops() / 2 / batch_size(example_inputs))


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
