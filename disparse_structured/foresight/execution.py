"""The masked network on one batch, with every value kept, so that variants compute only what differs."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from disparse_structured.recovery.contraction import packet
from disparse_structured.recovery.schedule import last_uses, schedule
from disparse_structured.structure import Structure
from disparse_structured.structure.capture import own_copy
from disparse_structured.structure.effects import Effects
from disparse_structured.twin import kept_statistics, removed_reads

aten = torch.ops.aten

_MAY_RETURN_THEIR_INPUT = (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.type_as)
"""Operators whose schemas do not say so."""

Values = dict[fx.Node, Any]
State = Mapping[str, Tensor]
Outputs = dict[str, list[Tensor]]


class Masking:
    """What the masked twin of ``keep`` (bool ``[units]``) does differently, by operator."""

    def __init__(self, structure: Structure, keep: Tensor) -> None:
        self._structure = structure
        self._keep = np.asarray(keep, dtype=bool)
        self.reads: dict[str, list[tuple[int, int, np.ndarray]]] = {}
        for ((node, position), dim), removed in removed_reads(structure, keep).items():
            self.reads.setdefault(node, []).append((position, dim, removed))
        self.replaced = kept_statistics(structure, keep)

    def differs(self, other: Masking) -> set[str]:
        """Operators that read or normalise units which only one of two masked twins of a network keeps."""
        changed = self._keep != other._keep
        return {
            consumer.node
            for group in self._structure.groups
            if changed[group.slice].any()
            for consumer in group.consumers
            if consumer.index[changed[group.slice]].size
        }


class Execution:
    """Runs the graph of ``structure`` masked by ``masking``; what writes to its input gets a copy of it."""

    def __init__(self, structure: Structure, masking: Masking) -> None:
        self.capture = structure.capture
        self._masking = masking
        self._steps = [node for step in schedule(self.capture, ()) for node in step]
        self._last = last_uses(self.capture, [(node,) for node in self._steps])
        effects = Effects.of(self.capture.graph)
        self._writers = set(effects.readers)
        self._bases = _bases(self.capture.graph)
        self._apart = _apart(self.capture.graph, self._steps, self._writers, self._bases)

    def values(self, state: State, inputs: tuple[Any, ...]) -> Values:
        """Every operator's result, for :meth:`outputs` and :meth:`variant`."""
        values = self._given(inputs, state)
        with torch.no_grad():
            for node in self._steps:
                values[node] = self._call(node, values, state, self._masking, copying=self._apart)
        return values

    def walk(self, state: State, inputs: tuple[Any, ...], see: Callable[[fx.Node, Values], None]) -> None:
        """Calls ``see`` before each operator with what is there; results go after their last use."""
        values = self._given(inputs, state)
        with torch.no_grad():
            for node, finished in zip(self._steps, self._last, strict=True):
                see(node, values)
                values[node] = self._call(node, values, state, self._masking)
                for each in finished:
                    values.pop(each, None)

    def argument(self, node: fx.Node, values: Values, state: State, position: int = 0) -> Any:
        """What ``node`` reads there, masked."""
        return self._arguments(node, values, state, self._masking)[0][position]

    def variant(
        self, values: Values, state: State, changed: State, masking: Masking, inputs: tuple[Any, ...]
    ) -> Outputs:
        """The tasks' outputs under another mask, and with tensors of ``changed`` in place of ``state``'s."""
        named = self.capture.tensors
        apart = masking.differs(self._masking)
        state = {**state, **changed}
        own: Values = {} if self._apart else self._given(inputs, state)
        known = values if self._apart else {}
        stale: set[fx.Node] = set()
        both = _Overlay(known, own)
        with torch.no_grad():
            for node, finished in zip(self._steps, self._last, strict=True):
                touched = node.name in apart or any(
                    named.get(each.name) in changed or each in stale for each in node.all_input_nodes
                )
                if touched or not self._apart:
                    # What is remembered must not be written to; memory of the variant's own may be.
                    copying = self._apart and self._bases[node] not in stale
                    own[node] = self._call(node, both, state, masking, copying)
                    stale.add(node)
                for each in finished:
                    if each in stale:
                        own.pop(each, None)
        return self.outputs(both)

    def outputs(self, values: Mapping[fx.Node, Any]) -> Outputs:
        """The tasks' tensors of real or complex numbers."""
        found = self.capture.task_outputs(self.capture.outputs)
        return {
            task: [
                values[node]
                for node in nodes
                if isinstance(node, fx.Node)
                and (values[node].is_floating_point() or values[node].is_complex())
            ]
            for task, nodes in found.items()
        }

    def _given(self, inputs: tuple[Any, ...], state: State) -> Values:
        leaves = iter(pytree.tree_leaves((inputs, {})))
        first = next((each for each in state.values() if each.is_floating_point()), None)
        values: Values = {}
        for node in self.capture.graph.find_nodes(op="placeholder"):
            if node.name in self.capture.constants:
                value = self.capture.constants[node.name]
                if isinstance(value, Tensor) and first is not None:
                    value = value.to(first.device, first.dtype if value.is_floating_point() else None)
                values[node] = own_copy(value)
            elif node.name not in self.capture.tensors:
                values[node] = own_copy(next(leaves))
        return values

    def _call(
        self,
        node: fx.Node,
        values: Mapping[fx.Node, Any],
        state: State,
        masking: Masking,
        copying: bool = False,
    ) -> Any:
        if node.op == "get_attr":
            return getattr(self.capture.module, str(node.target))
        args, kwargs = self._arguments(node, values, state, masking)
        if copying and node in self._writers:
            args = (own_copy(args[0]), *args[1:])
        target: Any = masking.replaced.get(node.name, node.target)
        return target(*args, **kwargs)

    def _arguments(
        self, node: fx.Node, values: Mapping[fx.Node, Any], state: State, masking: Masking
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def value(each: fx.Node) -> Any:
            name = self.capture.tensors.get(each.name)
            return values[each] if name is None else state[name]

        args: list[Any] = list(fx.map_arg(node.args, value))
        for position, dim, removed in masking.reads.get(node.name, ()):
            index = torch.from_numpy(removed).to(args[position].device)
            args[position] = args[position].index_fill(dim, index, 0)
        return tuple(args), dict(fx.map_arg(node.kwargs, value))


class _Overlay(Mapping[fx.Node, Any]):
    """``over`` where it has a value, else ``under``."""

    def __init__(self, under: Values, over: Values) -> None:
        self._under, self._over = under, over

    def __getitem__(self, node: fx.Node) -> Any:
        return self._over[node] if node in self._over else self._under[node]

    def __iter__(self) -> Any:
        return iter({**self._under, **self._over})

    def __len__(self) -> int:
        return len({**self._under, **self._over})


def _apart(
    graph: fx.Graph, steps: Sequence[fx.Node], writers: set[fx.Node], bases: Mapping[fx.Node, fx.Node]
) -> bool:
    """Whether operators that write get by with copies: nobody reads the memory by its old name afterwards."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    # What a node is after, by way of views and of writes, each to the one before.
    past: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in graph.nodes:
        before = [past[each] for each in node.all_input_nodes if bases[each] is bases[node]]
        past[node] = frozenset({node}).union(*before)
    written: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for writer in writers:
        written[bases[writer]].append(writer)
    return all(
        writer in past[each]
        for node in steps
        for each in node.all_input_nodes
        for writer in written.get(bases[each], ())
        if place[writer] < place[node]
    )


def _bases(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For every node the one whose memory it is or shows."""
    bases: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        shown = [
            node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            for place, argument in enumerate(schema.arguments if schema else ())
            if argument.alias_info is not None
        ]
        if node.target is operator.getitem or packet(node) in _MAY_RETURN_THEIR_INPUT:
            shown = [node.args[0]]
        nodes = [each for each in shown if isinstance(each, fx.Node)]
        bases[node] = bases[nodes[-1]] if nodes else node
    return bases
