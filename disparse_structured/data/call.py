"""The inputs of a model as one tuple, arguments that are passed by name included."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch.utils import _pytree as pytree

T = TypeVar("T")


class Keywords(dict[str, Any]):
    """Arguments that are passed by name: the last item of a tuple of inputs.

    It is needed where an argument cannot be passed by position, as it is keyword-only, goes to ``**kwargs``,
    or comes after an optional one that is left out.
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


def split(inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments of ``inputs``."""
    if inputs and isinstance(inputs[-1], Keywords):
        return inputs[:-1], dict(inputs[-1])
    return inputs, {}


def joined(positional: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """Positional and keyword arguments as one tuple."""
    return (*positional, Keywords(named)) if named else tuple(positional)


def call(function: Callable[..., T], inputs: tuple[Any, ...]) -> T:
    """``function`` called with ``inputs``."""
    positional, named = split(inputs)
    return function(*positional, **named)


def bound(function: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """``inputs`` with as many arguments by position as ``function`` allows.

    Raises:
        TypeError: ``function`` does not take them; says which argument is missing or unknown.
    """
    positional, named = split(inputs)
    found = inspect.signature(function).bind(*positional, **named)
    return joined(found.args, found.kwargs)


def named_leaves(function: Callable[..., Any], inputs: tuple[Any, ...]) -> list[tuple[str, Any]]:
    """The leaves of ``inputs`` in order, each with the name of the parameter that it belongs to.

    Inside of containers, keys and positions follow (``"features.p2"``). The second of ``*args`` is
    ``"input.1"``.
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
