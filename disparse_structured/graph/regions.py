"""Inlines regions of an exported graph whose context does not change what they compute.

``torch.export`` turns ``with torch.no_grad():`` and ``with torch.autocast(..., enabled=False):`` into calls
of a subgraph, which operator rules cannot see into.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

_GRADIENT_MODE = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def inline_regions(module: fx.GraphModule) -> None:
    """Replace each such call in ``module``'s graph by the operators inside; keep autocast that casts."""
    for node in list(module.graph.nodes):
        region = _region(node)
        if region is None:
            continue
        subgraph, arguments = region
        inner = getattr(module, str(subgraph.target))
        inline_regions(inner)
        _inline(module.graph, node, inner.graph, arguments)
        module.graph.erase_node(node)
        if not subgraph.users:
            module.graph.erase_node(subgraph)


def _region(node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]] | None:
    """The subgraph that ``node`` calls and its arguments, if it can be inlined."""
    if node.target is _GRADIENT_MODE:
        _, subgraph, *arguments = node.args
    elif node.target is _AUTOCAST and node.args[2] is False:
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
