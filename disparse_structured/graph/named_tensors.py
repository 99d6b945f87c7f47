"""The parameters and buffers of a model by name, their device, type and checksum."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping

import torch
from torch import nn

from disparse_structured.data.precision import first_inexact, is_inexact


def named_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return parameters and buffers by canonical name, and each name's canonical name (shared by ties)."""
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


def persistent_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return those of :func:`named_tensors` that are not only registered as ``persistent=False``.

    Unlike the names in ``model.state_dict()``, this does not depend on hooks, or on a method of the model's
    own, that leave tensors out or rename them.
    """
    tensors, canonical = named_tensors(model)
    passing = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    kept = {owner for name, owner in canonical.items() if name not in passing}
    return {name: tensor for name, tensor in tensors.items() if name in kept}


def plain_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the real and complex tensors that modules hold as plain attributes, by dotted name."""
    own = {id(tensor) for tensor in named_tensors(model)[0].values()}
    return {
        f"{path}.{name}" if path else name: value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and is_inexact(value) and id(value) not in own
    }


def detached_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers by canonical name: the model's own memory, detached."""
    return {name: tensor.detach() for name, tensor in named_tensors(model)[0].items()}


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer; the CPU for a model without either."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def floating_type_of(model: nn.Module) -> torch.dtype | None:
    """Return the real type of the first real or complex parameter; None for a model without one."""
    first = first_inexact(model.parameters())
    return None if first is None else first.dtype.to_real()


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values, and of which tensors require a gradient.

    >>> digest({"weight": torch.zeros(2)}) == digest({"weight": torch.ones(2)})
    False
    """
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
