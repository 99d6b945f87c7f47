"""Copies of a model: whole, or borrowing the model's memory."""

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
    """A deep copy; what modules merely remember of their last forward pass (attention maps) is detached."""
    return _copied(model, {})


@contextmanager
def borrowing(model: nn.Module) -> Iterator[nn.Module]:
    """A copy whose parameters and buffers are ``model``'s own memory until the block ends.

    For work that puts new tensors in place and writes into none. Only what it left is copied then: what
    goes never is.
    """
    tensors = named_tensors(model)[0].values()
    lent = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    borrower = _copied(model, {id(tensor): _alias(tensor) for tensor in tensors})
    yield borrower
    copies: dict[int, Any] = {}
    for tensor in named_tensors(borrower)[0].values():
        if tensor.untyped_storage().data_ptr() in lent:
            tensor.data = copy.deepcopy(tensor.data, copies)


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, nn.Parameter):
        return type(tensor)(tensor.detach(), tensor.requires_grad)
    return tensor.detach()


def _copied(model: nn.Module, instead: Mapping[int, torch.Tensor]) -> nn.Module:
    """A deep copy with other tensors ``instead`` of those with these ids."""
    remembered = {
        id(leaf): leaf.detach().clone()
        for module in model.modules()
        for leaf in pytree.tree_leaves(vars(module))
        if isinstance(leaf, torch.Tensor) and not leaf.is_leaf
    }
    return copy.deepcopy(model, {**remembered, **instead})
