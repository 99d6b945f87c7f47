"""Copies of a model: deep, or sharing the model's memory."""

from __future__ import annotations

import contextlib
import copy
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from disparse_structured.graph.named_tensors import named_tensors


def copied(model: nn.Module) -> nn.Module:
    """Deep-copy ``model``; tensors kept from the last forward pass (attention maps) are detached.

    What cannot be copied, such as an open file, is shared.
    """
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
    modules = list(model.modules())
    non_leaf = {id(leaf): leaf.detach().clone() for leaf in tensors_held_by(modules) if not leaf.is_leaf}
    functions = [found for module in modules for found in _functions(module)]
    # A hook's global variable is one object for all models.
    shared = {id(each): each for function in functions for each in _global_containers(function)}
    memo: dict[int, Any] = {**non_leaf, **shared, **instead}
    known = dict(memo)
    try:
        copied = copy.deepcopy(model, memo)
    except TypeError:
        memo = known | {id(each): each for each in _without_copies(modules)}
        copied = copy.deepcopy(model, memo)
    cells: dict[int, types.CellType] = {}
    for module in copied.modules():
        for holder in _holders(module):
            for name, value in holder.items():
                if isinstance(value, types.FunctionType) and _closes_over(value, memo):
                    holder[name] = _rebound(value, memo, cells)
    return copied


def _without_copies(modules: Sequence[nn.Module]) -> list[Any]:
    """What the modules hold that cannot be copied, such as a lock, an open file or a generator.

    An object that holds such a thing is itself copied.
    """
    itself = {id(module): module for module in modules}
    seen = dict[int, Any](itself)

    def within(item: Any) -> list[Any]:
        if id(item) in seen or isinstance(item, torch.Tensor):
            return []
        seen[id(item)] = item
        if type(item) in (dict, OrderedDict):
            return [found for value in item.values() for found in within(value)]
        if type(item) in (list, tuple, set, deque):
            return [found for value in item for found in within(value)]
        inner: list[Any] = []
        try:
            copy.deepcopy(item, dict(itself))
        except TypeError:
            inner = within(getattr(item, "__dict__", {}))
            try:
                copy.deepcopy(item, itself | {id(each): each for each in inner})
            except TypeError:
                return [item]
        return inner

    return [found for module in modules for found in within(vars(module))]


def tensors_held_by(found: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors in the attributes of objects, including nested containers and objects."""
    pending, seen = list(found), set[int]()
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            yield item
        elif id(item) not in seen and not isinstance(item, type | types.FunctionType | types.ModuleType):
            seen.add(id(item))
            if isinstance(item, Mapping):
                pending.extend(item.values())
            elif isinstance(item, list | tuple | set | frozenset | deque):
                pending.extend(item)
            else:
                slots = (name for cls in type(item).__mro__ for name in getattr(cls, "__slots__", ()))
                pending.extend(getattr(item, name) for name in slots if hasattr(item, name))
                pending.extend(getattr(item, "__dict__", {}).values())


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _holders(module: nn.Module) -> Iterator[dict[Any, Any]]:
    """The dicts in which a module may hold functions: its attributes (a replaced ``forward``) and hooks."""
    yield vars(module)
    yield from (getattr(module, name) for name in _HOOKS)


def _functions(module: nn.Module) -> Iterator[types.FunctionType]:
    for holder in _holders(module):
        yield from (value for value in holder.values() if isinstance(value, types.FunctionType))


def _global_containers(function: types.FunctionType) -> Iterator[Any]:
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, dict | list | set):
            yield value


def _contents(function: types.FunctionType) -> list[tuple[types.CellType, Any]]:
    """The variables that ``function`` closes over, with their values; those without a value are left out."""
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            found.append((cell, cell.cell_contents))
    return found


def _closes_over(function: types.FunctionType, copies: Mapping[int, Any]) -> bool:
    """Whether ``function`` closes over a part of the model that is in ``copies``."""
    return any(
        id(each) in copies or (isinstance(each, types.FunctionType) and _closes_over(each, copies))
        for _, each in _contents(function)
    )


def _rebound(
    function: types.FunctionType, copies: dict[int, Any], cells: dict[int, types.CellType]
) -> types.FunctionType:
    """``function`` closing over the copies, just as a copied bound method is bound to a copy.

    ``cells`` holds the new cells by the identity of the original, so functions still share variables.
    """
    for cell, each in _contents(function):
        if id(cell) not in cells:
            inner = isinstance(each, types.FunctionType) and _closes_over(each, copies)
            cells[id(cell)] = types.CellType(copies.get(id(each), each))
            if inner:
                cells[id(cell)].cell_contents = _rebound(each, copies, cells)
    rebound = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells.get(id(cell), cell) for cell in function.__closure__ or ()),
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__dict__.update(vars(function))
    return rebound
