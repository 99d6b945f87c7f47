"""Take and restore a snapshot of all tensors of a model, by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from disparse_structured.training.config import Callback

Weights = dict[str, Tensor | None]


def take(model: nn.Module) -> Weights:
    """Copies of all parameters and buffers, including buffers that are not persistent."""
    taken: Weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    for owner, name, leaf in _buffers(model):
        value = owner._buffers[leaf]
        taken[name] = None if value is None else value.detach().clone()
    return taken


def put(model: nn.Module, weights: Mapping[str, Tensor | None]) -> None:
    """Writes what :func:`take` returned into a model of the same architecture."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = weights[name]
            assert value is not None
            parameter.copy_(value)
        device = next(model.parameters()).device
        for owner, name, leaf in _buffers(model):
            saved, current = weights.get(name), owner._buffers[leaf]
            if saved is not None and current is not None and saved.shape == current.shape:
                current.copy_(saved)
            else:  # a module may have replaced the tensor by one of another shape
                owner._buffers[leaf] = None if saved is None else saved.detach().clone().to(device)


@contextmanager
def guarded(model: nn.Module, callback: Callback | None) -> Iterator[None]:
    """Training mode inside; modes are restored afterward, and everything else too if the body raises."""
    modes = [(module, module.training) for module in model.modules()]
    weights = take(model)
    state = None if callback is None else copy.deepcopy(callback.state_dict())
    model.train()
    try:
        yield
    except Exception:
        put(model, weights)
        if callback is not None and state is not None:
            callback.load_state_dict(state)
        raise
    finally:
        model.zero_grad(set_to_none=True)
        for module, mode in modes:
            module.training = mode


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    for path, owner in model.named_modules():
        for leaf in owner._buffers:
            yield owner, f"{path}.{leaf}" if path else leaf, leaf
