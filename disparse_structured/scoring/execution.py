"""The masked network on one batch, with every value kept, so that variants compute only what differs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from disparse_structured.graph.capture import clone_if_tensor
from disparse_structured.graph.schedule import last_uses, schedule
from disparse_structured.structure import Structure
from disparse_structured.verification.twin import MaskedReads

Values = dict[fx.Node, Any]
State = Mapping[str, Tensor]
Outputs = dict[str, list[Tensor]]


class Execution:
    """Runs the graph of ``structure`` masked by ``masking``; operators that write to an input get a copy."""

    def __init__(self, structure: Structure, masking: MaskedReads) -> None:
        self.capture = structure.capture
        self._masking = masking
        self._steps = [node for step in schedule(self.capture, ()) for node in step]
        self._last = last_uses(self.capture, [(node,) for node in self._steps])
        effects = self.capture.effects
        self._writers = set(effects.readers)
        self._bases = effects.bases
        self._copies_suffice = _copies_suffice(self.capture.graph, self._steps, self._writers, self._bases)

    def values(self, state: State, inputs: tuple[Any, ...]) -> Values:
        """Compute every operator's result, for :meth:`outputs` and :meth:`variant`."""
        values = self.capture.given(state, inputs)
        with torch.no_grad():
            for node in self._steps:
                values[node] = self._call(node, values, state, self._masking, copying=self._copies_suffice)
        return values

    def walk(self, state: State, inputs: tuple[Any, ...], see: Callable[[fx.Node, Values], None]) -> None:
        """Call ``see`` before each operator with the results so far; drop them after their last use."""
        values = self.capture.given(state, inputs)
        with torch.no_grad():
            for node, finished in zip(self._steps, self._last, strict=True):
                see(node, values)
                values[node] = self._call(node, values, state, self._masking)
                for each in finished:
                    values.pop(each, None)

    def argument(self, node: fx.Node, values: Values, state: State, position: int = 0) -> Any:
        """Return what ``node`` reads there, masked."""
        return self._arguments(node, values, state, self._masking)[0][position]

    def variant(
        self, values: Values, state: State, changed: State, masking: MaskedReads, inputs: tuple[Any, ...]
    ) -> Outputs:
        """Compute the tasks' outputs under another mask, with ``changed`` in place of ``state``'s tensors."""
        named = self.capture.tensors
        differing = masking.differs(self._masking)
        state = {**state, **changed}
        own: Values = {} if self._copies_suffice else self.capture.given(state, inputs)
        known = values if self._copies_suffice else {}
        stale: set[fx.Node] = set()
        both = _Overlay(known, own)
        with torch.no_grad():
            for node, finished in zip(self._steps, self._last, strict=True):
                touched = node.name in differing or any(
                    named.get(each.name) in changed or each in stale for each in node.all_input_nodes
                )
                if touched or not self._copies_suffice:
                    # Cached values must not be written to; the variant's own may be.
                    copying = self._copies_suffice and self._bases[node] not in stale
                    own[node] = self._call(node, both, state, masking, copying)
                    stale.add(node)
                for each in finished:
                    if each in stale:
                        own.pop(each, None)
        return self.outputs(both)

    def outputs(self, values: Mapping[fx.Node, Any]) -> Outputs:
        """Return the tasks' real or complex tensors."""
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

    def _call(
        self,
        node: fx.Node,
        values: Mapping[fx.Node, Any],
        state: State,
        masking: MaskedReads,
        copying: bool = False,
    ) -> Any:
        if node.op == "get_attr":
            return getattr(self.capture.module, str(node.target))
        args, kwargs = self._arguments(node, values, state, masking)
        if copying and node in self._writers:
            args[0] = clone_if_tensor(args[0])
        return masking.target(node)(*args, **kwargs)

    def _arguments(
        self, node: fx.Node, values: Mapping[fx.Node, Any], state: State, masking: MaskedReads
    ) -> tuple[list[Any], dict[str, Any]]:
        def value(each: fx.Node) -> Any:
            name = self.capture.tensors.get(each.name)
            return values[each] if name is None else state[name]

        return masking.arguments(node, value)


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


def _copies_suffice(
    graph: fx.Graph, steps: Sequence[fx.Node], writers: set[fx.Node], bases: Mapping[fx.Node, fx.Node]
) -> bool:
    """Whether writing operators can work on copies: nothing reads the memory by its old name afterwards."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    # What a node derives from through views and writes, each of the one before.
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
