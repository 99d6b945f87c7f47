"""Copies the exported graph with modules on what it reads: masks for the twin, gates for saliency."""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from disparse_structured.graph.capture import Capture
from disparse_structured.graph.operators import aliased, operator_of

aten = torch.ops.aten

Argument = int | tuple[int, int]
"""The position of an operator's argument, or of a list argument and of an item in it."""

Place = tuple[str, Argument]
"""A node of the graph and one of its arguments."""


def argument(args: Sequence[Any], place: Argument) -> Any:
    """Return the item at ``place`` of an operator's positional arguments."""
    return args[place[0]][place[1]] if isinstance(place, tuple) else args[place]


def put(args: list[Any], place: Argument, value: Any) -> None:
    """Write ``value`` at ``place`` of ``args``; a list there is copied first."""
    if isinstance(place, tuple):
        number, item = place
        args[number] = [value if i == item else each for i, each in enumerate(args[number])]
    else:
        args[place] = value


def instrumented(
    capture: Capture,
    readers: Mapping[Place, Sequence[nn.Module]],
    replacements: Mapping[str, nn.Module],
    *,
    differentiable: bool = False,
) -> fx.GraphModule:
    """Copy the graph with only the tasks' outputs.

    What a node reads at a place of ``readers`` passes through the modules given there, in order. A node
    of ``replacements`` becomes a call of that module with the node's arguments. With ``differentiable``,
    nothing that a gradient needs is overwritten.
    """
    graph = fx.Graph()
    modules: dict[str, Any] = {}
    copies: dict[fx.Node, fx.Node] = {}

    def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        name = f"instrument_{len(modules)}"
        modules[name] = module
        return graph.call_module(name, args, kwargs)

    places: dict[str, dict[Argument, Sequence[nn.Module]]] = defaultdict(dict)
    for (name, place), found in readers.items():
        places[name][place] = found
    needed = _needed(capture)
    for node in capture.graph.nodes:
        if node.op == "output" or (node.op != "placeholder" and node not in needed):
            continue
        if node.op == "get_attr":
            modules[str(node.target)] = getattr(capture.module, str(node.target))
        own = {
            source: graph.call_function(aten.clone.default, (copies[source],))
            for source in (_overwritten_reads(capture, node) if differentiable else ())
        }
        read = ChainMap(own, copies)
        args = list(fx.map_arg(node.args, read.__getitem__))
        kwargs = dict(fx.map_arg(node.kwargs, read.__getitem__))
        for place, found in places[node.name].items():
            value = argument(args, place)
            if (node, argument(node.args, place)) in capture.effects.overwritten:
                # A gate saves what it read; a later in-place write must not change it.
                value = graph.call_function(aten.clone.default, (value,))
            for module in found:
                value = call(module, (value,), {})
            put(args, place, value)
        if node.name in replacements:
            copies[node] = call(replacements[node.name], tuple(args), kwargs)
        else:
            copies[node] = graph.create_node(node.op, node.target, tuple(args), kwargs, node.name)
        if differentiable and operator_of(node).saves_result and node.name in capture.effects.written:
            copies[node] = graph.call_function(aten.clone.default, (copies[node],))
    graph.output(fx.map_arg(_task_results(capture), copies.__getitem__))
    return fx.GraphModule(modules, graph)


def _overwritten_reads(capture: Capture, node: fx.Node) -> list[fx.Node]:
    """The arguments of ``node`` that are overwritten later, unless it returns or writes to their memory."""
    same = {source for source, _ in aliased(node)}
    return [
        each
        for each in node.all_input_nodes
        if (node, each) in capture.effects.overwritten and each not in same
    ]


def _task_results(capture: Capture) -> tuple[Any, ...]:
    return capture.outputs[: sum(capture.widths)]


def _needed(capture: Capture) -> set[fx.Node]:
    """The nodes that the tasks' outputs depend on, in-place writes to what they read included."""
    needed: set[fx.Node] = set()
    pending = [item for item in _task_results(capture) if isinstance(item, fx.Node)]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(capture.effects.sources[node])
    return needed
