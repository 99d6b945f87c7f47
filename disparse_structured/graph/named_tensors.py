"""The parameters and buffers of a model by name; tied tensors share one."""

from __future__ import annotations

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is; the CPU for a model without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def named_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Parameters and buffers by canonical name, and the canonical name of every name (ties share one)."""
    tensors: dict[str, torch.Tensor] = {}
    canonical: dict[str, str] = {}
    first: dict[int, str] = {}
    for named in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in named:
            owner = first.setdefault(id(tensor), name)
            canonical[name] = owner
            if owner == name:
                tensors[name] = tensor
    return tensors, canonical
