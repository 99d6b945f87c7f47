"""Compares exported graphs, ignoring the precision that they compute in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from disparse_structured.graph.capture import Capture


def equal_up_to_dtype(first: Capture, second: Capture) -> bool:
    """Check whether both graphs have the same nodes in order, with equal sizes, numbers and provenance.

    Anything derived from one graph without using dtypes then holds for both.
    """
    return _layout(first) == _layout(second) and all(map(_equal, first.graph.nodes, second.graph.nodes))


def _layout(capture: Capture) -> tuple[Any, ...]:
    return (
        len(capture.graph.nodes),
        dict(capture.tensors),
        set(capture.constants),
        capture.inputs,
        capture.tasks,
        capture.widths,
        capture.returned,
        dict(capture.results),
        capture.reals,
    )


def _equal(first: fx.Node, second: fx.Node) -> bool:
    return tuple(_facts(first)) == tuple(_facts(second))


def _facts(node: fx.Node) -> Iterator[Any]:
    """What operator rules may read from a node."""
    yield from (node.name, node.op, node.target)
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    yield str(spec)
    yield from map(_argument, leaves)
    yield from map(_size, pytree.tree_leaves(node.meta.get("val")))
    yield node.meta.get("custom")
    yield [(path, kind) for path, kind in (node.meta.get("nn_module_stack") or {}).values()]


def _argument(leaf: Any) -> Any:
    """A literal with its type (1 is not True), another node by name, a float dtype without its precision."""
    if isinstance(leaf, fx.Node):
        return leaf.name
    if isinstance(leaf, torch.dtype):
        inexact = leaf.is_floating_point or leaf.is_complex
        return leaf.is_complex if inexact else leaf
    return type(leaf), str(leaf)


def _size(leaf: Any) -> Any:
    """The shape of a tensor; data-dependent sizes are symbols, which are compared by name."""
    return tuple(map(str, leaf.shape)) if isinstance(leaf, torch.Tensor) else str(leaf)
