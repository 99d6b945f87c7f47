"""Tracks positions by running an index tensor through the operators that only move values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from disparse_structured.graph.operators import operator_of

aten = torch.ops.aten


def rearranges(node: fx.Node) -> bool:
    """Check whether ``node`` only moves the values of its first argument."""
    if node.target is aten.view.dtype:  # reinterprets the bits as other values
        return False
    return operator_of(node).moves is not None and len(node.all_input_nodes) == 1


def is_identity(node: fx.Node, *_: fx.Node) -> bool:
    """Check whether ``node`` returns the values that it reads, each in its place."""
    return operator_of(node).keeps


def position_ids(shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
    """Number the elements of ``shape``, int64, by flat position in dimensions ``start`` to ``stop``."""
    sizes = torch.Size(size if start <= dim < stop else 1 for dim, size in enumerate(shape))
    return torch.arange(sizes.numel()).reshape(sizes).expand(shape).contiguous()


def trace_positions(
    source: fx.Node, index: torch.Tensor, passes: Callable[[fx.Node, fx.Node], bool] = is_identity
) -> Iterator[tuple[fx.Node, fx.Node, torch.Tensor]]:
    """Yield ``(reader, node, index)``: what reads values of ``source``, from which node, and which values.

    ``index`` numbers them, in the shape of ``source``. It is followed through operators that move values and
    through those that ``passes`` accepts, which keep them in place. Every other user is a reader. Each
    node is followed once.
    """
    pending: list[tuple[fx.Node, Any]] = [(source, index)]
    seen = {source}
    while pending:
        node, found = pending.pop()
        for user in node.users:
            if not (rearranges(user) or passes(user, node)):
                yield user, node, found
            elif user not in seen:
                seen.add(user)
                pending.append((user, _moved(user, found) if rearranges(user) else found))


def _moved(node: fx.Node, index: Any) -> Any:
    # A valid view of the values may be invalid for the index, whose strides may differ.
    target: Any = aten.reshape.default if operator_of(node).moves == "view" else node.target
    return target(index, *node.args[1:], **node.kwargs)
