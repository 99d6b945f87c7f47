"""In-place operators of an exported graph: who writes to whose memory, and what depends on it."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_MAY_RETURN_THEIR_INPUT = (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.type_as)
"""Operators whose schemas do not say so."""


@dataclass(frozen=True)
class Effects:
    """``sources`` is what a node depends on: its arguments and all earlier in-place writes to their memory.

    ``written`` are the names of the nodes whose memory is written to, directly or through views;
    ``overwritten`` the pairs of a node and an argument whose memory is written to after the node read it;
    ``readers`` the nodes that read what a node overwrites, before it does; ``bases`` gives for every node the
    one whose memory it is or shows.
    """

    sources: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    overwritten: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    readers: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    bases: dict[fx.Node, fx.Node] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: fx.Graph) -> Effects:
        """Reads aliases and writes off the operators' schemas."""
        effects = cls()
        bases = effects.bases
        writers: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        readers: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = defaultdict(list)
        for node in graph.nodes:
            inputs = node.all_input_nodes
            earlier = [writer for each in inputs for writer in writers.get(bases[each], ())]
            effects.sources[node] = tuple(dict.fromkeys([*inputs, *earlier]))
            bases[node] = node
            if _may_return_its_input(node) and isinstance(node.args[0], fx.Node):
                bases[node] = bases[node.args[0]]
            for argument, value in _arguments(node):
                if argument.alias_info is None or not isinstance(value, fx.Node):
                    continue
                bases[node] = bases[value]
                if argument.alias_info.is_write:
                    effects.written.add(bases[node].name)
                    writers[bases[node]].append(node)
                    found = readers.pop(bases[node], [])
                    effects.overwritten.update(found)
                    effects.readers[node] = tuple(reader for reader, _ in found)
            for each in inputs:
                readers[bases[each]].append((node, each))
        return effects


def _may_return_its_input(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return node.target is operator.getitem or packet in _MAY_RETURN_THEIR_INPUT


def _arguments(node: fx.Node) -> Iterator[tuple[Any, Any]]:
    """The arguments of the operator's schema with what ``node`` passes for them."""
    schema = getattr(node.target, "_schema", None)
    for position, argument in enumerate(schema.arguments if schema else ()):
        given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        yield argument, given
