"""In-place operators of an exported graph: which node writes to which memory, and what depends on it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch import fx

from disparse_structured.graph.operators import aliased


@dataclass(frozen=True)
class Effects:
    """Dependencies between nodes through memory.

    ``sources`` maps a node to what it depends on: its arguments and all earlier in-place writes to their
    memory. ``written`` names the nodes whose memory is written to, directly or through views. ``overwritten``
    holds pairs of a node and an argument whose memory is written to after the node read it. ``readers`` maps
    a node to those that read what it overwrites before it does. ``bases`` maps a node to its memory's owner.
    """

    sources: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    overwritten: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    readers: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    bases: dict[fx.Node, fx.Node] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: fx.Graph) -> Effects:
        """Read aliases and writes from the operators' records and schemas."""
        effects = cls()
        bases = effects.bases
        writers: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        readers: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = defaultdict(list)
        for node in graph.nodes:
            inputs = node.all_input_nodes
            earlier = [writer for each in inputs for writer in writers.get(bases[each], ())]
            effects.sources[node] = tuple(dict.fromkeys([*inputs, *earlier]))
            bases[node] = node
            for value, writes in aliased(node):
                bases[node] = bases[value]
                if writes:
                    effects.written.add(bases[node].name)
                    writers[bases[node]].append(node)
                    found = readers.pop(bases[node], [])
                    effects.overwritten.update(found)
                    effects.readers[node] = tuple(reader for reader, _ in found)
            for each in inputs:
                readers[bases[each]].append((node, each))
        return effects
