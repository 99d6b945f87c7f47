"""Where the numbers in ``forward`` come from.

A pruned module only works if the numbers its ``forward`` computes with follow the new widths. To know
which ones do, the export runs with *traced integers*: every integer attribute of every module, and
every size read from a tensor, records its origin and keeps that record through arithmetic.
The operators of the exported graph are annotated with the integers they were called with.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Key = int | str


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of a module, or the integer at the path ``keys`` inside the attribute.

    A key is an index of a tuple or list, a key of a dict, or the name of another object's attribute.
    """

    module: str
    name: str
    keys: tuple[Key, ...] = ()

    def read(self, model: nn.Module) -> Any:
        """Read its value in ``model``.

        Raises:
            AttributeError, LookupError, TypeError: it does not exist.
        """
        value = getattr(model.get_submodule(self.module), self.name)
        for key in self.keys:
            value = _item(value, key)
        return value

    def write(self, model: nn.Module, number: int) -> None:
        """Set it to ``number`` in ``model``; containers are replaced because they may be shared."""
        module = model.get_submodule(self.module)
        setattr(module, self.name, _replaced(getattr(module, self.name, None), self.keys, number))


def _item(holder: Any, key: Any) -> Any:
    return holder[key] if isinstance(holder, dict | list | tuple) else getattr(holder, key)


def _replaced(holder: Any, keys: tuple[Any, ...], number: int) -> Any:
    """A copy of ``holder`` with ``number`` at the path ``keys``."""
    if not keys:
        return number
    key, *rest = keys
    item = _replaced(_item(holder, key), tuple(rest), number)
    if isinstance(holder, tuple):
        items = list(holder)
        items[key] = item
        return type(holder)(items)
    changed = copy.copy(holder)
    if isinstance(holder, dict | list):
        changed[key] = item
    else:
        setattr(changed, key, item)
    return changed


@dataclass(frozen=True)
class Size:
    """Size ``dim`` of the value with annotation ``value`` (see :func:`annotation`)."""

    value: int
    dim: int


@dataclass(frozen=True)
class Arithmetic:
    """``left symbol right`` of two expressions."""

    symbol: str
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Derived:
    """A number that torch itself computes from shapes, so it changes when they do."""


Expression = int | Attribute | Size | Arithmetic | Derived

Real = tuple[Expression, int]
"""An expression that a float was computed from, and its value."""


class TracedInt(int):
    """An ``int`` that stores the expression it was computed by.

    ``reals`` collects what floats such as a scale were computed from. The floats become constants in the
    graph. (In ``1.0 / integer``, Python converts the integer itself, untraced.)
    """

    expression: Expression
    reals: list[Real]

    def __new__(cls, value: int, expression: Expression, reals: list[Real]) -> TracedInt:
        """Create an ``int`` of ``value`` that stores ``expression``."""
        traced = super().__new__(cls, value)
        traced.expression, traced.reals = expression, reals
        return traced

    def __float__(self) -> float:
        self.reals.append((self.expression, int(self)))
        return float(int(self))

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def _expression(value: int) -> Expression:
    return value.expression if isinstance(value, TracedInt) else int(value)


def _real(compute: Callable[[Any, Any], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(self: TracedInt, other: Any) -> Any:
        self.reals.append((self.expression, int(self)))
        return compute(int(self), other)

    def backward(self: TracedInt, other: Any) -> Any:
        self.reals.append((self.expression, int(self)))
        return compute(other, int(self))

    return forward, backward


def _arithmetic(
    symbol: str, compute: Callable[[int, int], int]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    left, right = _real(compute)

    def forward(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            return left(self, other)
        expression = Arithmetic(symbol, self.expression, _expression(other))
        return TracedInt(compute(int(self), int(other)), expression, self.reals)

    def backward(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            return right(self, other)
        expression = Arithmetic(symbol, _expression(other), self.expression)
        return TracedInt(compute(int(other), int(self)), expression, self.reals)

    return forward, backward


for _method, (_forward, _backward) in {
    "add": _arithmetic("+", operator.add),
    "sub": _arithmetic("-", operator.sub),
    "mul": _arithmetic("*", operator.mul),
    "floordiv": _arithmetic("//", operator.floordiv),
    "truediv": _real(operator.truediv),
    "pow": _real(operator.pow),
}.items():
    setattr(TracedInt, f"__{_method}__", _forward)
    setattr(TracedInt, f"__r{_method}__", _backward)


def _leaves(arguments: Any) -> Iterator[Any]:
    """The leaves of a call's arguments, including the bounds of slices."""
    for leaf in pytree.tree_leaves(arguments):
        if isinstance(leaf, slice):
            yield from (leaf.start, leaf.stop, leaf.step)
        else:
            yield leaf


class Annotator(TorchFunctionMode):
    """Annotates the graph nodes of every call with its integer arguments and their expressions.

    Enter it where ``forward`` runs: around the whole export it would also receive every access to a tensor.
    ``reals`` collects what ``forward`` computed floats from.
    """

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self._values = start
        self.reals: list[Real] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        mode = get_proxy_mode()
        if mode is None:
            return func(*args, **kwargs)
        tracer = mode.tracer
        if func == torch.Tensor.shape.__get__:  # type: ignore[attr-defined]
            return tuple(self._sizes(tracer, args[0], func(*args)))
        if func == torch.Tensor.size:
            sizes = func(*args, **kwargs)
            traced = self._sizes(tracer, args[0], args[0].shape)
            if isinstance(sizes, int):
                return traced[args[1] if len(args) > 1 else kwargs["dim"]]
            return tuple(traced)
        last = next(iter(reversed(tracer.graph.nodes)), None)
        result = func(*args, **kwargs)
        integers = [
            (int(leaf), _expression(leaf))
            for leaf in _leaves((args, kwargs))
            if isinstance(leaf, int) and not isinstance(leaf, bool)
        ]
        indexes = func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
        if integers or indexes:
            for node in reversed(tracer.graph.nodes):
                if node is last:
                    break
                custom = node.meta.setdefault("custom", {})
                if "integers" not in custom:
                    custom["integers"], custom["indexes"] = integers, indexes
        return result

    def _sizes(self, tracer: Any, tensor: torch.Tensor, sizes: Any) -> list[int]:
        number = self._number(tracer, tensor)
        if number is None:
            return list(sizes)
        return [
            TracedInt(size, Size(number, dim), self.reals) if type(size) is int else size
            for dim, size in enumerate(sizes)
        ]

    def number(self, tensor: torch.Tensor) -> int | None:
        """Return the :func:`annotation` of the node that computed ``tensor``, or None if there is none."""
        mode = get_proxy_mode()
        return None if mode is None else self._number(mode.tracer, tensor)

    def _number(self, tracer: Any, tensor: torch.Tensor) -> int | None:
        slot = get_proxy_slot(tensor, tracer, None)
        if slot is None:
            return None
        custom = slot.proxy.node.meta.setdefault("custom", {})
        if "value" not in custom:
            self._values += 1
            custom["value"] = self._values
        number: int = custom["value"]
        return number


@contextmanager
def traced_attributes(model: nn.Module, reals: list[Real]) -> Iterator[None]:
    """Replace the integer attributes of all modules by traced integers, which fill ``reals``."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, module in model.named_modules():
            attributes = vars(module)
            for name, value in list(attributes.items()):
                traced = _trace_attribute(path, name, value, reals)
                if traced is not None:
                    before.append((attributes, name, value))
                    attributes[name] = traced
        yield
    finally:
        for attributes, name, value in before:
            attributes[name] = value


def _trace_attribute(path: str, name: str, value: Any, reals: list[Real]) -> Any:
    if type(value) is int:
        return TracedInt(value, Attribute(path, name), reals)
    if type(value) in (tuple, list) and value and all(type(item) is int for item in value):
        return type(value)(
            TracedInt(item, Attribute(path, name, (i,)), reals) for i, item in enumerate(value)
        )
    return None


def annotation(node: fx.Node) -> int | None:
    """Return the number by which :class:`Size` expressions refer to ``node``'s value."""
    return (node.meta.get("custom") or {}).get("value")


def expressions(node: fx.Node, literals: list[int]) -> list[Expression]:
    """Find the origin of each of ``node``'s literal integers; an ``int`` if ``forward`` hard-codes it.

    ``literals`` are matched to one contiguous run of equal integers in the Python call.
    """
    custom = node.meta.get("custom") or {}
    called = custom.get("integers", [])
    values = [value for value, _ in called]
    runs = [
        start
        for start in range(len(values) - len(literals) + 1)
        if values[start : start + len(literals)] == literals
    ]
    candidates = {tuple(expression for _, expression in called[run : run + len(literals)]) for run in runs}
    if len(candidates) == 1:
        return list(candidates.pop())
    shapes = str(node.target).startswith(("aten.view", "aten.reshape", "aten.expand"))
    if not candidates and shapes and custom.get("indexes"):
        return [Derived()] * len(literals)  # an index broadcasts to a shape that forward does not state
    return list(literals)
