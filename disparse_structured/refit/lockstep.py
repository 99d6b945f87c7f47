"""The dense network and its masked twin, computed side by side, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from disparse_structured.graph.capture import clone_if_tensor
from disparse_structured.graph.schedule import Step, last_uses, schedule
from disparse_structured.refit.storage import Storage
from disparse_structured.structure import Structure
from disparse_structured.verification.twin import MaskedReads, arguments

State = dict[str, torch.Tensor]
"""Parameters and buffers by name."""

MEMORY = 2 * 1024**3
"""Bytes of activations of both networks that are held in memory; see :class:`Storage`."""


class Lockstep:
    """Both networks on all chunks of a calibration set, one operator at a time.

    ``state`` holds the twin's parameters and buffers, in dense coordinates. A visitor may replace its
    tensors for later operators: the twin's inputs to an operator are computed with all earlier
    replacements. Values are dropped after their last use; what both networks compute alike is computed
    once.
    """

    def __init__(
        self,
        structure: Structure,
        state: State,
        keep: torch.Tensor,
        chunks: Sequence[tuple[Any, ...]],
        together: Sequence[Step] = (),
        memory: int = MEMORY,
    ) -> None:
        """``together``: operators to run in one step; see :mod:`disparse_structured.graph.schedule`.

        ``memory``: bytes of activations to hold in memory; more are held in files.
        """
        self.capture = structure.capture
        self.dense_state: Mapping[str, torch.Tensor] = dict(state)
        self.state = state
        self.chunks = len(chunks)
        self._effects = self.capture.effects
        self.steps = schedule(self.capture, together)
        self._storage = Storage(memory)
        self._masking = MaskedReads(structure, keep)
        self._dense: dict[fx.Node, list[Any]] = {}
        self._twin: dict[fx.Node, list[Any]] = {}
        self._equal: set[fx.Node] = set()
        given = [self.capture.given(state, inputs) for inputs in chunks]
        for node in given[0]:
            self._dense[node] = [self._storage.hold(each[node]) for each in given]
            self._twin[node] = self._own(node, self._dense[node])
            self._equal.add(node)

    def run(self, before: Callable[[Step], None]) -> None:
        """Run all steps.

        ``before`` is called once a step's inputs and the dense network's results are available; the twin's
        results are computed after.
        """
        last = last_uses(self.capture, self.steps)
        with torch.no_grad():
            for number, step in enumerate(self.steps):
                for node in step:
                    self._dense[node] = self._results(node, self.dense_state, self._dense, masked=False)
                before(step)
                for node in step:
                    self._twin[node] = self._twin_results(node)
                for node in last[number]:
                    self._drop(node)

    def arguments(self, node: fx.Node, chunk: int, dense: bool = False) -> tuple[Any, ...]:
        """Return what ``node`` reads in the twin (masked), or in the dense network."""
        if dense:
            return tuple(self._arguments(node, self.dense_state, self._dense, chunk, masked=False)[0])
        return tuple(self._arguments(node, self.state, self._twin, chunk, masked=True)[0])

    def compute(self, node: fx.Node, chunk: int, replaced: Mapping[str, torch.Tensor]) -> Any:
        """Compute ``node`` in the twin with some of its parameters and buffers replaced."""
        args, kwargs = self._arguments(node, {**self.state, **replaced}, self._twin, chunk, masked=True)
        return self._masking.target(node)(*args, **kwargs)

    def dense_result(self, node: fx.Node, chunk: int) -> Any:
        """Return what the dense network computed at ``node``."""
        return self._dense[node][chunk]

    def twin_result(self, node: fx.Node, chunk: int) -> Any:
        """Return what the twin computed at ``node``."""
        return self._twin[node][chunk]

    def has(self, node: fx.Node) -> bool:
        """Return whether both networks have computed ``node`` and still hold it."""
        return node in self._dense and node in self._twin

    def value(self, node: fx.Node, chunk: int) -> Any:
        """Return what the twin holds for ``node``: a parameter, a buffer, a result, or a later view."""
        name = self.capture.tensors.get(node.name)
        if name is not None:
            return self.state[name]
        if node in self._twin:
            return self._twin[node][chunk]
        target: Any = node.target
        return target(*fx.map_arg(node.args, lambda each: self.value(each, chunk)), **node.kwargs)

    def alike(self, node: fx.Node) -> bool:
        """Return whether both networks read the same at ``node``, parameters included."""
        if self._masking.touches(node):
            return False
        # Nodes that wrote to what this node reads are among its sources.
        return all(self._same(each) for each in self._effects.sources[node])

    def _same(self, node: fx.Node) -> bool:
        name = self.capture.tensors.get(node.name)
        return node in self._equal if name is None else self.state[name] is self.dense_state[name]

    def _twin_results(self, node: fx.Node) -> list[Any]:
        if self.alike(node):
            self._equal.add(node)
            if all(self._dense.get(each) is self._twin.get(each) for each in node.all_input_nodes):
                return self._own(node, self._dense[node])
        return self._results(node, self.state, self._twin, masked=True)

    def _own(self, node: fx.Node, values: list[Any]) -> list[Any]:
        """``values``, or a copy where later operators write to their memory."""
        if node.name not in self._effects.written:
            return values
        return [self._storage.hold(pytree.tree_map(clone_if_tensor, value)) for value in values]

    def _drop(self, node: fx.Node) -> None:
        dense, twin = self._dense.pop(node, None), self._twin.pop(node, None)
        self._storage.release(dense)
        if twin is not dense:
            self._storage.release(twin)

    def _results(
        self, node: fx.Node, state: Mapping[str, torch.Tensor], values: dict[fx.Node, list[Any]], masked: bool
    ) -> list[Any]:
        found = []
        for chunk in range(self.chunks):
            args, kwargs = self._arguments(node, state, values, chunk, masked)
            result: Any
            if node.op == "get_attr":
                result = getattr(self.capture.module, str(node.target))
            else:
                target: Any = self._masking.target(node) if masked else node.target
                result = target(*args, **kwargs)
            found.append(self._storage.hold(result))
        return found

    def _arguments(
        self,
        node: fx.Node,
        state: Mapping[str, torch.Tensor],
        values: dict[fx.Node, list[Any]],
        chunk: int,
        masked: bool,
    ) -> tuple[list[Any], dict[str, Any]]:
        def value(each: fx.Node) -> Any:
            name = self.capture.tensors.get(each.name)
            return values[each][chunk] if name is None else state[name]

        return self._masking.arguments(node, value) if masked else arguments(node, value)
