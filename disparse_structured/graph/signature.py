"""What determines the graph that ``torch.export`` makes of a model.

Weights are inputs of an exported graph, so one graph serves all copies of a model, whatever their weights.
A graph does depend on the names, shapes and types of the tensors, and on everything else that ``forward`` may
read: the numbers, strings, functions and plain tensors among the modules' attributes. (Global variables
are ignored.)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.graph.named_tensors import named_tensors, plain_tensors

_OWN = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"})
"""Attributes of every module that are covered elsewhere, or that eval mode overrides."""

_PLAIN = (int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size)

_DEPTH = 2
"""How many levels of nested objects are inspected: a configuration, and a part of it."""


@dataclass(frozen=True)
class Signature:
    """What determines the graph of a model for given inputs: equal signatures mean equal graphs.

    Args:
        inputs: shapes, dtypes and devices of ``forward``'s tensor arguments, and its other arguments.
        tensors: a digest of the names, shapes, strides, types and devices of parameters and buffers, and of
            the types and values of plain real and complex tensors.
        attributes: a digest of the types of the modules and of their other attributes.
    """

    inputs: Hashable
    tensors: str
    attributes: str

    @classmethod
    def of(cls, model: nn.Module, inputs: tuple[Any, ...]) -> Signature:
        """Compute the signature of ``model`` in its current state; copies share it.

        Modules may hold any object. One that is not plain data counts by its type and the plain data in its
        attributes.
        """
        tensors, canonical = named_tensors(model)
        plain = plain_tensors(model)
        return cls(
            input_signature(inputs),
            _of_tensors(tensors, canonical, plain),
            _of_attributes(model, tensors, {id(tensor) for tensor in plain.values()}),
        )


def _of_tensors(
    tensors: Mapping[str, torch.Tensor], canonical: Mapping[str, str], plain: Mapping[str, torch.Tensor]
) -> str:
    digest = hashlib.sha256(repr(canonical).encode())
    for name, tensor in tensors.items():
        facts = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)
        digest.update(repr((name, type(tensor), *facts)).encode())
    for name, tensor in plain.items():
        digest.update(repr((name, _content(tensor))).encode())
    return digest.hexdigest()


def _of_attributes(model: nn.Module, tensors: Mapping[str, torch.Tensor], plain: Set[int]) -> str:
    digest = hashlib.sha256()
    names = {id(tensor): name for name, tensor in tensors.items()}
    for path, module in model.named_modules():
        digest.update(repr((path, _name(type(module)))).encode())
        own = {
            name: value.shape if id(value) in plain else value
            for name, value in vars(module).items()
            if name not in _OWN
        }
        for fact in _facts(own, names, frozenset(), _DEPTH):
            digest.update(repr(fact).encode())
    return digest.hexdigest()


def input_signature(inputs: tuple[Any, ...]) -> Hashable:
    """Describe ``forward``'s arguments: shape, dtype and device of tensors, and all other values."""
    leaves, spec = pytree.tree_flatten(inputs)
    facts = [
        (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else repr(leaf)
        for leaf in leaves
    ]
    return tuple(facts), str(spec)


def _facts(value: Any, names: Mapping[int, str], within: frozenset[int], depth: int) -> Iterator[Any]:
    """``value`` as plain data, piece by piece.

    Args:
        names: the names of the model's parameters and buffers, by identity.
        within: the identities of the objects that contain ``value``, which may refer to one another.
        depth: how many more levels of nested objects are inspected.
    """
    if isinstance(value, _PLAIN):
        yield value
        return
    if isinstance(value, torch.Tensor):
        yield names.get(id(value)) or _content(value)
        return
    yield _name(type(value))
    if id(value) in within:
        return
    within |= {id(value)}
    if isinstance(value, functools.partial):
        yield from _facts((value.func, value.args, value.keywords), names, within, depth)
    elif callable(value) and hasattr(value, "__qualname__"):
        code = getattr(value, "__code__", None)
        yield _name(value), code and (code.co_code, code.co_names)
    elif isinstance(value, Mapping):
        for entry in value.items():
            yield from _facts(entry, names, within, depth)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _facts(item, names, within, depth)
    elif isinstance(value, Set):
        yield sorted(repr(list(_facts(item, names, within, depth))) for item in value)
    elif depth and hasattr(value, "__dict__"):
        yield from _facts(vars(value), names, within, depth - 1)


def _content(tensor: torch.Tensor) -> Any:
    """Shape, dtype, device and values; no values if they cannot be read."""
    facts = (tuple(tensor.shape), tensor.dtype, tensor.device)
    try:
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    except (RuntimeError, TypeError, NotImplementedError):
        return facts
    return *facts, hashlib.sha256(values.tobytes()).hexdigest()


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
