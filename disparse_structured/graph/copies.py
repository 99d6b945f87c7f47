"""Copies of a model: deep, or sharing the model's memory."""

from __future__ import annotations

import contextlib
import copy
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from disparse_structured.data.precision import in_precision
from disparse_structured.errors import UnsupportedModelError
from disparse_structured.graph.named_tensors import named_tensors, plain_tensors

M = TypeVar("M", bound=nn.Module)


def copied(model: M) -> M:
    """Deep-copy ``model``; tensors kept from the last forward pass (attention maps) are detached.

    What cannot be copied, such as an open file, is shared.
    """
    return _copied(model, {})


def copied_in(model: M, dtype: torch.dtype) -> M:
    """Deep-copy ``model`` as :func:`copied` does, in another precision.

    Parameters, buffers and the tensors that modules hold as plain attributes are cast by
    :func:`~disparse_structured.data.precision.in_precision`.
    """
    result = copied(model)
    result._apply(lambda tensor: in_precision(tensor, dtype))  # type: ignore[no-untyped-call]  # PyTorch does not annotate it
    for tensor in plain_tensors(result).values():
        tensor.data = in_precision(tensor.data, dtype)
    return result


@contextmanager
def borrowing(model: M) -> Iterator[M]:
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
        # A parameter of another subclass of Tensor is no instance of a class that can be called like this.
        kind = type(tensor) if issubclass(type(tensor), nn.Parameter) else nn.Parameter
        return kind(tensor.detach(), tensor.requires_grad)
    return tensor.detach()


def _cloned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, detached if ``tensor`` was computed."""
    clone = tensor.detach().clone()
    if tensor.is_leaf:
        vars(clone).update(vars(tensor))
        clone.requires_grad_(tensor.requires_grad)
    return clone


def _refuses_deepcopy(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is of a subclass that ``copy.deepcopy`` cannot make."""
    kind: Any = type(tensor)
    if kind is torch.Tensor or kind.__deepcopy__ is not torch.Tensor.__deepcopy__:
        return False
    with torch._C.DisableTorchFunctionSubclass():  # as deepcopy does
        return type(tensor.new_empty(0)) is not kind


def _copied(model: M, instead: Mapping[int, torch.Tensor]) -> M:
    """A deep copy in which ``instead`` replaces tensors, by id."""
    modules = list(model.modules())
    cloned = {
        id(tensor): _cloned(tensor)
        for tensor in tensors_held_by(modules)
        if not tensor.is_leaf or _refuses_deepcopy(tensor)
    }
    functions = [found for module in modules for found in _functions(module)]
    # A hook's global variable is one object for all models.
    shared = {id(each): each for function in functions for each in _global_containers(function)}
    memo: dict[int, Any] = {**cloned, **shared, **instead}
    known = dict(memo)
    try:
        copied = copy.deepcopy(model, memo)
    except Exception:  # a lock raises a TypeError, one of processes a RuntimeError
        memo = known | {id(each): each for each in _without_copies(modules)}
        try:
            copied = copy.deepcopy(model, memo)
        except Exception as error:
            raise UnsupportedModelError(
                f"the model cannot be copied: {type(error).__name__}: {error}. Pruning works on copies. Let "
                "copy.deepcopy(model) succeed, by a method __deepcopy__ for example."
            ) from error
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
        except Exception:
            inner = within(getattr(item, "__dict__", {}))
            try:
                copy.deepcopy(item, itself | {id(each): each for each in inner})
            except Exception:
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
        id(each) in copies
        or (isinstance(each, types.MethodType) and id(each.__self__) in copies)
        or (isinstance(each, types.FunctionType) and _closes_over(each, copies))
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
            cells[id(cell)] = types.CellType(copies.get(id(each), each))
            if isinstance(each, types.MethodType) and id(each.__self__) in copies:
                cells[id(cell)].cell_contents = types.MethodType(each.__func__, copies[id(each.__self__)])
            elif isinstance(each, types.FunctionType) and _closes_over(each, copies):
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
