"""Ways into a model besides ``forward``: ``encode`` and ``decode``, ``fuse``, a function of the model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import to_device
from disparse_structured.data.call import bound, call, joined
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import OptionError
from disparse_structured.graph.capture import clone_if_tensor, tensor_leaves
from disparse_structured.graph.named_tensors import device_of, floating_type_of

EntryPoints = Mapping[str, Any]
"""By name: the arguments of the method with that dotted name (a tuple, a dict or a tensor; ``()`` for none),
or a function that is called with the model and the arguments of ``forward``."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One entry point of a model.

    Args:
        name: the dotted name of a method, or any name for a ``function``.
        inputs: the method's arguments; None for a ``function``, which gets those of ``forward``.
        function: ``function(model, *inputs)``; None for a method.
    """

    name: str
    inputs: tuple[Any, ...] | None
    function: Callable[..., Any] | None

    @property
    def given(self) -> Any:
        """The item of :data:`EntryPoints` that this was made from."""
        return self.inputs if self.function is None else self.function

    @classmethod
    def of(cls, model: nn.Module, name: str, given: Any) -> Entry:
        """Check one item of :data:`EntryPoints`.

        Raises:
            OptionError: it is of the wrong kind, there is no such method, or the arguments do not fit it.
        """
        if callable(given) and not isinstance(given, torch.Tensor):
            return cls(name, None, given)
        if isinstance(given, torch.Tensor):
            given = (given,)
        if isinstance(given, Mapping):
            given = joined((), given)
        if not isinstance(given, tuple):
            raise OptionError(
                f"entry point {name!r} is given as {type(given).__name__}. Give the arguments of the method "
                "with that name (a tuple, a dict or a tensor; () for none), or a function of the model and "
                "the arguments of forward."
            )
        try:
            method = _method(model, name)
        except AttributeError:
            method = None
        if not callable(method):
            raise OptionError(
                f"entry point {name!r}: {type(model).__name__} has no method of that name. Give its dotted "
                "name, such as 'backbone.encode', or pass a function of the model instead of arguments."
            )
        try:
            return cls(name, bound(method, given), None)
        except TypeError as error:
            raise OptionError(
                f"entry point {name!r}: the arguments do not fit {inspect.signature(method)}: {error}."
            ) from None

    def arguments(self, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return its arguments on the device and in the floating-point type of ``model``.

        Args:
            inputs: those of ``forward``.
        """
        given = inputs if self.inputs is None else self.inputs
        placed: tuple[Any, ...] = to_device(given, device_of(model), floating_type_of(model))
        return placed

    def call(self, model: nn.Module, *arguments: Any, **named: Any) -> Any:
        """Call it on ``model``, which it may change."""
        if self.function is not None:
            return self.function(model, *arguments, **named)
        return _method(model, self.name)(*arguments, **named)


@dataclass(frozen=True, eq=False)
class Entered:
    """What an entry point did: it returned ``output``, or left ``changed``, the model to run from now on."""

    output: Any
    changed: nn.Module | None

    def tensors(self, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
        """Return the tensors of the output; those of ``forward(*inputs)`` if the model was changed."""
        if self.changed is None:
            return tensor_leaves(self.output)
        with _running(self.changed):
            return tensor_leaves(call(self.changed, pytree.tree_map(clone_if_tensor, inputs)))


def entered(entry: Entry, model: nn.Module, arguments: tuple[Any, ...]) -> Entered:
    """Call ``entry`` on ``model``, a copy that may be changed, in eval mode and without gradients.

    An entry point that returns no tensor has changed the model, or returned a changed one.
    """
    given = pytree.tree_map(clone_if_tensor, arguments)
    with _running(model):
        output = call(functools.partial(entry.call, model), given)
    if isinstance(output, nn.Module):
        return Entered(None, output)
    return Entered(output, None) if tensor_leaves(output) else Entered(None, model)


@contextmanager
def _running(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, fixed random states; new layers get the model's floating-point type."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(floating_type_of(model) or default)
    try:
        with eval_mode(model), torch.no_grad(), Isolation(0, device_of(model)):
            yield
    finally:
        torch.set_default_dtype(default)


def _method(model: nn.Module, name: str) -> Any:
    owner, _, method = name.rpartition(".")
    return getattr(model.get_submodule(owner), method)


@contextmanager
def integers_read(model: nn.Module) -> Iterator[set[tuple[str, str]]]:
    """Yield a set that fills with the integer attributes that are read: module path and name.

    ``model`` is a copy: its modules temporarily have classes of their own.
    """
    found: set[tuple[str, str]] = set()
    before = [(module, type(module)) for module in model.modules()]
    try:
        for path, module in model.named_modules():
            if not type(module).__module__.startswith("torch.nn"):
                module.__class__ = _watched(type(module), path, found)
        yield found
    finally:
        for module, kind in before:
            module.__class__ = kind


def _watched(kind: type[nn.Module], path: str, found: set[tuple[str, str]]) -> type[nn.Module]:
    def read(self: nn.Module, name: str) -> Any:
        value = kind.__getattribute__(self, name)
        if type(value) is int and name in kind.__getattribute__(self, "__dict__"):
            found.add((path, name))
        return value

    return type(kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__})
