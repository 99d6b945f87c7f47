"""Sums whose other operands already have errors, which a layer's result can compensate for.

The last branch of a sum can correct the errors of the others: its target is the dense network's sum minus
what the pruned network's other operands contribute (He, Zhang and Sun, ICCV 2017, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from disparse_structured.graph.operators import named_arguments, operator_of, packet

aten = torch.ops.aten

_SHAPES = ("view", "reshape")
_TINY = 1e-3
"""Channels that the path to the sum scales by less than this, relative to the largest, are left out."""

Value = Callable[[fx.Node], Any]
"""What the pruned network holds for a parameter, a buffer or something computed only from those."""


@dataclass(frozen=True, eq=False)
class Sum:
    """``other`` is added to a layer's result; ``back`` maps a value of the sum back to the layer."""

    other: fx.Node
    back: Callable[[Tensor, Value], Tensor]


def sums(node: fx.Node) -> Iterator[Sum]:
    """Find the sums that ``node``'s result enters, past operators that scale channels or move positions."""
    path: list[Callable[[Tensor, Value], Tensor]] = []
    while True:
        users = [user for user in node.users if user.op != "output"]
        if len(users) != 1 or users[0].op != "call_function":
            return
        user = users[0]
        if operator_of(user).combines == "sum":
            first, second = user.args[:2]
            other = second if first is node else first
            if not isinstance(other, fx.Node) or other is node or user.kwargs.get("alpha", 1) != 1:
                return
            if _shape(other) != _shape(node) or _shape(user) != _shape(node) or user.meta["val"].is_complex():
                return
            yield Sum(other, _composed(tuple(path)))
        else:
            step = _inverse(user, node)
            if step is None:
                return
            path.append(step)
        node = user


def _composed(path: tuple[Callable[[Tensor, Value], Tensor], ...]) -> Callable[[Tensor, Value], Tensor]:
    def back(value: Tensor, of: Value) -> Tensor:
        for step in reversed(path):
            value = step(value, of)
        return value

    return back


def _inverse(user: fx.Node, node: fx.Node) -> Callable[[Tensor, Value], Tensor] | None:
    """The inverse of ``user``'s linear part for its operand ``node``; None if there is none."""
    operator, record = packet(user), operator_of(user)
    shape = _shape(node)
    if record.keeps and not record.casts and user.args[0] is node:
        return lambda value, of: value
    if record.moves in _SHAPES and user.args[0] is node:
        return lambda value, of: value.reshape(shape)
    if operator is aten.permute and user.args[0] is node:
        order: Any = user.args[1]
        inverse = [[each % len(order) for each in order].index(dim) for dim in range(len(order))]
        return lambda value, of: value.permute(inverse)
    if operator is aten.transpose and user.args[0] is node:
        dims: Any = user.args[1:3]
        return lambda value, of: value.transpose(*dims)
    if operator is aten.batch_norm and user.args[0] is node:
        given = named_arguments(user)
        if given["training"] or not isinstance(given["running_var"], fx.Node):
            return None
        return lambda value, of: _divided(value, _norm_scale(given, of).reshape(-1, *[1] * (len(shape) - 2)))
    if record.combines == "product":
        factor = user.args[1] if user.args[0] is node else user.args[0]
        if isinstance(factor, fx.Node) and factor is not node and _constant(factor):
            scale = factor
            return lambda value, of: _divided(value, of(scale))
    return None


def _norm_scale(given: dict[str, Any], of: Value) -> Tensor:
    scale: Tensor = (of(given["running_var"]) + given["eps"]).rsqrt()
    return scale * of(given["weight"]) if isinstance(given["weight"], fx.Node) else scale


def _divided(value: Tensor, scale: Tensor) -> Tensor:
    usable = scale.abs() > _TINY * scale.abs().max()
    return torch.where(usable, value / torch.where(usable, scale, torch.ones_like(scale)), 0)


def _constant(node: fx.Node) -> bool:
    """Whether ``node`` is a parameter, or a view of one."""
    while node.op == "call_function" and (
        operator_of(node).moves in _SHAPES or packet(node) is aten.unsqueeze
    ):
        first = node.args[0]
        if not isinstance(first, fx.Node):
            return False
        node = first
    return node.op == "placeholder"


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)
