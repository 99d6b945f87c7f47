"""An untrained network: the same architecture with newly drawn weights."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from disparse_structured.data.batches import ToInputs, batches, call_model, to_device
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.precision import is_inexact
from disparse_structured.data.randomness import Isolation
from disparse_structured.graph.copies import copied

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_NORMALIZERS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def fresh(
    model: nn.Module,
    seed: int,
    data: Iterable[Any] | None = None,
    *,
    to_inputs: ToInputs | None = None,
    max_batches: int | None = None,
) -> nn.Module:
    """A copy of ``model`` with new weights; ``model`` and the global random states are not changed.

    Convolutions and linear layers get Xavier's normal initialization (Glorot and Bengio, AISTATS 2010), as
    in DiSparse's published analysis, and zero biases; normalizations are reset. Other parameters are kept.

    Args:
        data: if given, running statistics become the mean over these batches, so that the network can be
            used in eval mode.

    Raises:
        BatchError: ``data`` has no batch, or one that the model refuses.
    """
    model = copied(model)
    first = next(filter(is_inexact, model.parameters()))
    generator = torch.Generator().manual_seed(seed)
    with Isolation(seed, first.device), torch.no_grad():
        for module in model.modules():
            if isinstance(module, _LAYERS):
                # Drawn on the CPU, so that a seed gives the same weights on every device.
                kind = torch.complex64 if module.weight.is_complex() else None
                drawn = torch.empty(module.weight.shape, dtype=kind)
                module.weight.copy_(nn.init.xavier_normal_(drawn, generator=generator))
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, _NORMALIZERS):
                module.reset_parameters()
        if data is not None:
            _estimate_statistics(model, first, islice(batches(data), max_batches), to_inputs)
    return model


def _estimate_statistics(
    model: nn.Module, first: torch.Tensor, data: Iterable[Any], to_inputs: ToInputs | None
) -> None:
    """Sets running statistics to plain means over the batches."""
    counted = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    momenta = [module.momentum for module in counted]
    with eval_mode(model):
        for module in counted:
            module.training, module.momentum = True, None
        for batch in data:
            call_model(model, to_device(batch, first.device, first.dtype), to_inputs)
    for module, momentum in zip(counted, momenta, strict=True):
        module.momentum = momentum
