"""Inlines regions of an exported graph, and writes the casts of autocast into it.

``torch.export`` turns ``with torch.no_grad():`` and ``with torch.autocast(...):`` into calls of a subgraph,
which operator rules cannot see into.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

_GRADIENT_MODE = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def inline_regions(module: fx.GraphModule, autocast: tuple[Any, ...] = ()) -> None:
    """Replace each such call in ``module``'s graph by the operators inside.

    Operators get the casts that autocast makes before them; ``autocast`` holds what is entered around
    ``module``, the outermost first: device, type, and whether it is enabled.
    """
    for node in list(module.graph.nodes):
        region = _region(node)
        if region is not None:
            subgraph, arguments = region
            inner = getattr(module, str(subgraph.target))
            inline_regions(inner, (*autocast, node.args[:3]) if node.target is _AUTOCAST else autocast)
            _inline(module.graph, node, inner.graph, arguments)
            module.graph.erase_node(node)
            if not subgraph.users:
                module.graph.erase_node(subgraph)
        elif any(enabled for _, _, enabled in autocast) and _is_castable(node.target):
            _cast(module.graph, node, autocast)


def _is_castable(target: Any) -> bool:
    """Whether it is an operator that autocast may cast for: none that writes to an argument is."""
    return isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable


def _cast(graph: fx.Graph, node: fx.Node, autocast: Sequence[Any]) -> None:
    """Writes the casts that ``autocast`` makes of the arguments of ``node``."""
    found = _Casts()
    arguments: Any = fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")  # torch says so where it has no autocast for a device
        for device, kind, enabled in autocast:
            stack.enter_context(torch.autocast(device, kind, enabled, cache_enabled=False))
        with torch.no_grad(), found:
            node.target(*arguments[0], **arguments[1])  # type: ignore[operator]  # an operator, no name
    for each in node.all_input_nodes:
        kind = found.kinds.get(id(each.meta["val"]))
        if kind is not None:
            with graph.inserting_before(node):
                made = graph.call_function(torch.ops.aten.to.dtype, (each, kind))
            made.meta = {
                "val": each.meta["val"].to(kind),
                "nn_module_stack": node.meta.get("nn_module_stack"),
            }
            node.replace_input_with(each, made)


class _Casts(TorchDispatchMode):
    """Collects, by the identity of a tensor, the types that tensors are cast to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.kinds: dict[int, torch.dtype] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and given.get("dtype") is not None:
            self.kinds[id(args[0])] = given["dtype"]
        return func(*args, **given)


def _region(node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]] | None:
    """The subgraph that ``node`` calls and its arguments, if it can be inlined."""
    if node.target is _GRADIENT_MODE:
        _, subgraph, *arguments = node.args
    elif node.target is _AUTOCAST:
        _, _, _, _, subgraph, *arguments = node.args
    else:
        return None
    unpacked = all(user.target is operator.getitem for user in node.users)
    return (subgraph, tuple(arguments)) if isinstance(subgraph, fx.Node) and unpacked else None


def _inline(graph: fx.Graph, node: fx.Node, inner: fx.Graph, arguments: tuple[Any, ...]) -> None:
    placeholders = inner.find_nodes(op="placeholder")
    copies: dict[fx.Node, Any] = dict(zip(placeholders, arguments, strict=True))
    with graph.inserting_before(node):
        for each in inner.nodes:
            if each.op not in ("placeholder", "output"):
                copies[each] = graph.node_copy(each, copies.__getitem__)
    results: Any = fx.map_arg(inner.output_node().args[0], copies.__getitem__)
    for user in list(node.users):
        index: Any = user.args[1]
        user.replace_all_uses_with(results[index])
        graph.erase_node(user)
