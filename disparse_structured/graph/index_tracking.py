"""Where positions go: an index tensor is run through the operators that only move them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_VIEWS = (aten.view, aten._unsafe_view)
_MOVING = {
    operator.getitem,
    *(
        getattr(aten, name)
        for name in (
            "view reshape flatten unflatten _unsafe_view permute transpose t swapaxes movedim squeeze "
            "unsqueeze expand unbind select split split_with_sizes chunk slice narrow repeat_interleave"
        ).split()
    ),
}
_KEEPING = {
    getattr(aten, name) for name in "contiguous clone alias detach dropout to _to_copy lift_fresh".split()
}


def packet(node: fx.Node) -> Any:
    """The operator of ``node``, whichever its overload."""
    return getattr(node.target, "overloadpacket", node.target)


def rearranges(node: fx.Node) -> bool:
    """Whether all that ``node`` returns are values of its first argument, in other places."""
    if node.target is aten.view.dtype:  # other values, made of the same bits
        return False
    return packet(node) in _MOVING and len(node.all_input_nodes) == 1


def is_identity(node: fx.Node, *_: fx.Node) -> bool:
    """Whether ``node`` returns what it reads, every value in its place."""
    return packet(node) in _KEEPING


def position_ids(shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
    """int64 of ``shape``: the flat position of every element in the dimensions from ``start`` to ``stop``."""
    sizes = torch.Size(size if start <= dim < stop else 1 for dim, size in enumerate(shape))
    return torch.arange(sizes.numel()).reshape(sizes).expand(shape).contiguous()


def trace_positions(
    source: fx.Node, index: torch.Tensor, passes: Callable[[fx.Node, fx.Node], bool] = is_identity
) -> Iterator[tuple[fx.Node, fx.Node, torch.Tensor]]:
    """Who reads the values of ``source``, from which node, and which of them: ``(reader, node, index)``.

    ``index`` numbers them, in the shape of ``source``. It is followed through what moves values and through
    what ``passes``, which leaves them in their places; every other user is a reader. Each node is followed
    once.
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
    # A view of the values need not be one of the index, whose strides may be others.
    target: Any = aten.reshape.default if packet(node) in _VIEWS else node.target
    return target(index, *node.args[1:], **node.kwargs)
