"""The inputs of a model as one tuple, including arguments that are passed by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch.utils import _pytree as pytree

T = TypeVar("T")


class Keywords(dict[str, Any]):
    """Arguments that are passed by name, as the last item of a tuple of inputs.

    It is needed if an argument cannot be passed by position, because it is keyword-only, goes to
    ``**kwargs``, or follows an omitted optional argument.
    """


pytree.register_pytree_node(
    Keywords,
    lambda named: (list(named.values()), list(named)),
    lambda values, names: Keywords(zip(names, values, strict=True)),
    serialized_type_name="disparse_structured.data.call.Keywords",
    flatten_with_keys_fn=lambda named: (
        [(pytree.MappingKey(name), value) for name, value in named.items()],
        list(named),
    ),
)


class Batched(tuple[Any, ...]):
    """Inputs of which only some tensors have a batch dimension: the leaves at the positions ``where``.

    A plain tuple of inputs says nothing about that. There, tensors are batched if their first dimension is as
    large as that of the first tensor.
    """

    where: tuple[int, ...]

    def __new__(cls, items: Iterable[Any] = (), where: Iterable[int] = ()) -> Batched:
        """Mark ``items``, the arguments of ``forward``."""
        found = super().__new__(cls, items)
        found.where = tuple(where)
        return found


pytree.register_pytree_node(
    Batched,
    lambda inputs: (list(inputs), inputs.where),
    lambda values, where: Batched(values, where),
    serialized_type_name="disparse_structured.data.call.Batched",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
    flatten_with_keys_fn=lambda inputs: (
        [(pytree.SequenceKey(number), value) for number, value in enumerate(inputs)],
        inputs.where,
    ),
)


def marked_like(inputs: tuple[Any, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return ``inputs`` with the batch dimensions of ``others``, inputs of the same model."""
    if not isinstance(others, Batched) or isinstance(inputs, Batched):
        return inputs
    alike = len(pytree.tree_leaves(inputs)) == len(pytree.tree_leaves(others))
    return Batched(inputs, others.where) if alike else inputs


def split(inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments of ``inputs``."""
    if inputs and isinstance(inputs[-1], Keywords):
        return tuple(inputs[:-1]), dict(inputs[-1])
    return tuple(inputs), {}


def joined(positional: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return positional and keyword arguments as one tuple."""
    return (*positional, Keywords(named)) if named else tuple(positional)


def call(function: Callable[..., T], inputs: tuple[Any, ...]) -> T:
    """Call ``function`` with ``inputs``."""
    positional, named = split(inputs)
    return function(*positional, **named)


def bound(function: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return ``inputs`` with as many arguments by position as ``function`` allows.

    Raises:
        TypeError: ``function`` does not take them. The message says which argument is missing or unknown.
    """
    positional, named = split(inputs)
    found = inspect.signature(function).bind(*positional, **named)
    return marked_like(joined(found.args, found.kwargs), inputs)


def options_left(function: Callable[..., Any], inputs: tuple[Any, ...]) -> dict[str, bool | str]:
    """Return the arguments of ``function`` that ``inputs`` leave at a default which is a bool or a string."""
    positional, named = split(inputs)
    signature = inspect.signature(function)
    given = signature.bind(*positional, **named).arguments
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in given and isinstance(parameter.default, bool | str)
    }


def named_leaves(function: Callable[..., Any], inputs: tuple[Any, ...]) -> list[tuple[str, Any]]:
    """List the leaves of ``inputs`` in order, each with the name of its parameter.

    For a leaf inside a container, its key or position is appended (``"features.p2"``). A positional argument
    in ``*args`` is named by its position (``"input.1"``).
    """
    positional, named = split(inputs)
    parameters = list(inspect.signature(function).parameters.values())
    fixed = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [fixed[i] if i < len(fixed) else f"input.{i}" for i in range(len(positional))]
    found: list[tuple[str, Any]] = []
    for name, argument in (*zip(names, positional, strict=True), *named.items()):
        for path, leaf in pytree.tree_flatten_with_path(argument)[0]:
            found.append((".".join([name, *(_key(key) for key in path)]), leaf))
    return found


def _key(entry: Any) -> str:
    """The key, position or field of one step into a container."""
    return str(next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name)))
