"""Real counts on a real model, independent of the analytic cost model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from disparse_structured.batches import batch_size
from disparse_structured.modes import evaluating


def count_macs(model: nn.Module, example_inputs: tuple[Any, ...]) -> int:
    """Multiply-accumulates of one forward pass per example, counted by ``torch.utils.flop_counter``.

    Convolutions, linear layers, matrix products and attention; element-wise work counts nothing. The
    model runs once, in eval mode, without gradients.
    """
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(*example_inputs)
    return round(counter.get_total_flops() / 2 / batch_size(example_inputs))


def count_parameters(model: nn.Module) -> int:
    """The number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
