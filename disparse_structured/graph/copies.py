"""Copies of a model: deep, or sharing the model's memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.graph.named_tensors import named_tensors


def copied(model: nn.Module) -> nn.Module:
    """Deep-copy ``model``; tensors kept from the last forward pass (attention maps) are detached."""
    return _copied(model, {})


@contextmanager
def borrowing(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy whose parameters and buffers share ``model``'s memory until the block ends.

    For code that replaces tensors and never writes into them. The remaining shared tensors are copied at
    the end; removed ones never are.
    """
    tensors = named_tensors(model)[0].values()
    shared = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    replica = _copied(model, {id(tensor): _alias(tensor) for tensor in tensors})
    yield replica
    copies: dict[int, Any] = {}
    for tensor in named_tensors(replica)[0].values():
        if tensor.untyped_storage().data_ptr() in shared:
            tensor.data = copy.deepcopy(tensor.data, copies)


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, nn.Parameter):
        return type(tensor)(tensor.detach(), tensor.requires_grad)
    return tensor.detach()


def _copied(model: nn.Module, instead: Mapping[int, torch.Tensor]) -> nn.Module:
    """A deep copy in which ``instead`` replaces tensors, by id."""
    non_leaf = {
        id(leaf): leaf.detach().clone()
        for module in model.modules()
        for leaf in pytree.tree_leaves(vars(module))
        if isinstance(leaf, torch.Tensor) and not leaf.is_leaf
    }
    return copy.deepcopy(model, {**non_leaf, **instead})
