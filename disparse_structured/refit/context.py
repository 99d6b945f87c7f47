"""What a refit method works with: both networks in lockstep, layers, and a record of what was done."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from disparse_structured.checks import check_counts, check_seed
from disparse_structured.graph.operators import named_arguments, packet
from disparse_structured.graph.schedule import Step, separable
from disparse_structured.refit.contraction import Contraction, Operands, layers
from disparse_structured.refit.design import design, positions, target
from disparse_structured.refit.folds import LIMIT
from disparse_structured.refit.lockstep import Lockstep, State
from disparse_structured.refit.regression import Center, Fit, Folds, cross_validated
from disparse_structured.refit.residual_sums import sums
from disparse_structured.report.refit import LayerFacts, SkippedLayer
from disparse_structured.structure import Structure

aten = torch.ops.aten

LEAST = 8192
"""Fewest rows taken, where there are as many."""

APART = "its uses depend on each other, or on those of another shared weight"
"""Why a shared weight, or shared statistics, are left unchanged."""


def check_settings(memory: object, shifts: object, seed: object) -> None:
    """Raises an :class:`~disparse_structured.errors.OptionError` if a refit method cannot have these."""
    check_counts(memory=memory)
    check_counts(0, shifts=shifts)
    check_seed(seed)


class RefitMethod(Protocol):
    """One way of refitting a network, layer by layer."""

    @property
    def memory(self) -> int:
        """Bytes of activations to hold in memory; more are held in files."""
        ...

    @property
    def shifts(self) -> int:
        """Extra shifted copies of every image to fit on; see :func:`~.shifts.shifted`."""
        ...

    @property
    def seed(self) -> int:
        """The random seed."""
        ...

    def visit(self, work: RefitContext, step: Step) -> None:
        """Refit what ``step`` computes, if possible, through :class:`RefitContext`.

        The twin's inputs to ``step`` are available, computed with all earlier changes; its results are
        not. ``step`` is never one that both networks compute alike.
        """
        ...


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of one chunk; ``fold`` is the fold that they belong to.

    Args:
        inputs: the twin's, ``[groups, rows, features]``.
        target: the dense network's pre-activation at the kept outputs, ``[groups, rows, out]``.
        computed: the twin's, with the current weights, without its bias.
        residuals: the target minus the twin's, with its bias.
    """

    fold: int
    node: fx.Node
    chunk: int
    inputs: Tensor
    target: Tensor
    computed: Tensor
    residuals: Tensor


class RefitContext:
    """Both networks, their contractions, and what has been done so far.

    ``state`` is the twin's parameters and buffers by name; refits replace some.
    """

    def __init__(
        self,
        structure: Structure,
        state: State,
        keep: Tensor,
        chunks: Sequence[tuple[Any, ...]],
        method: RefitMethod,
    ) -> None:
        found = layers(structure, keep)
        norms = _batch_norms(structure)
        steps = separable(structure.capture, [each.nodes for each in found.contractions] + norms)
        self.walk = Lockstep(structure, state, keep, chunks, steps, method.memory)
        self.state = state
        self.layers: list[LayerFacts] = []
        self.skipped: list[SkippedLayer] = []
        self._refused = dict(found.refused)
        self._removed = found.removed
        self._contractions: dict[fx.Node, Contraction] = {}
        for each in found.contractions:
            if each.nodes in steps:
                self._contractions.update(dict.fromkeys(each.nodes, each))
            else:
                self._refused.update(dict.fromkeys(each.nodes, SkippedLayer(each.weight, APART)))
        self._apart = {node for nodes in norms if nodes not in steps for node in nodes}
        self._method = method
        self._generator = torch.Generator().manual_seed(method.seed)

    def visit(self, step: Step) -> None:
        """Let the method refit ``step``, unless both networks compute it alike."""
        if all(self.walk.alike(node) for node in step):
            return
        self._method.visit(self, step)

    def contraction(self, step: Step) -> Contraction | None:
        """Return the contraction of ``step``, or None, with a note if it cannot be regressed."""
        if step[0] in self._refused:
            refused = self._refused[step[0]]
            self.skip(refused.layer, refused.reason)
        return self._contractions.get(step[0])

    def apart(self, node: fx.Node) -> bool:
        """Return whether ``node`` is a batch norm that shares statistics with ones run at other times."""
        return node in self._apart

    def kept(self, name: str, dim: int = 0) -> Tensor:
        """Return the kept positions along a dimension of a parameter or buffer, int64."""
        removed = self._removed.get((name, dim), np.empty(0, dtype=np.int64))
        return torch.from_numpy(np.delete(np.arange(self.state[name].shape[dim]), removed))

    def skip(self, layer: str, reason: str) -> None:
        """Note that ``layer`` is left unchanged."""
        if SkippedLayer(layer, reason) not in self.skipped:
            self.skipped.append(SkippedLayer(layer, reason))

    def conclude(
        self,
        contraction: Contraction,
        known: Folds,
        rows: int,
        scale: float,
        ridges: Sequence[float | None],
        centers: Sequence[Center | None] = (None,),
        expand: Callable[[Fit], Fit] = lambda fit: fit,
    ) -> None:
        """Refit a contraction as far as that lowers its error on held-out data.

        ``scale`` is the sum of squares of its target; ``expand`` turns the fit into a change of the
        whole weight. See :func:`cross_validated` for the rest.
        """
        if not known.finite() or not math.isfinite(scale):
            self.skip(contraction.weight, "it reads or computes NaN or infinite values")
            return
        outcome = cross_validated(known, ridges, centers)
        errors = (float(outcome.before.sum()), float(outcome.after.sum()))
        before, after = (math.sqrt(error / scale) if scale else 0.0 for error in errors)
        facts = LayerFacts(contraction.weight, known.shape.features, rows, before, after)
        self._apply_fit(contraction, expand(outcome.fit), facts)

    def _apply_fit(self, contraction: Contraction, fit: Fit, facts: LayerFacts) -> None:
        """Changes the twin's weight and what takes its intercept, if that is finite in their type."""
        weight = self.state[contraction.weight]
        changed = bool(fit.change.any()) or bool(fit.intercept.any())
        replaced = {}
        if changed:
            matrix = contraction.matrix(weight).double() + fit.change.to(weight.device).double()
            replaced[contraction.weight] = contraction.with_matrix(weight, matrix)
        sign = -1 if contraction.subtracts else 1
        for name in contraction.bias if changed else ():
            bias = self.state[name].clone()
            places = contraction.outputs.reshape(-1).to(bias.device)
            bias[places] = (bias[places].double() + sign * fit.intercept.reshape(-1).to(bias.device)).to(bias)
            replaced[name] = bias
        self.replace(facts, replaced)

    def replace(self, facts: LayerFacts, replaced: Mapping[str, Tensor]) -> None:
        """Put ``replaced`` into the twin's state if it is finite."""
        if all(bool(tensor.isfinite().all()) for tensor in replaced.values()):
            self.state.update(replaced)
            self.layers.append(facts)
        else:
            kind = next(iter(replaced.values())).dtype
            self.skip(facts.layer, f"the fit is not finite in {kind}")

    def samples(self, contraction: Contraction, step: Step, share: float, streams: bool) -> Iterator[Sample]:
        """Yield rows of every chunk: ``share`` of each operator's output positions, alike for all examples.

        With ``streams``, targets compensate for the errors of the other operands of the sums that the
        result flows into.
        """
        current = _wide(contraction.matrix(self.state[contraction.weight]))
        for chunk in range(self.walk.chunks):
            for node in step:
                total, _ = positions(node, self.walk.dense_result(node, chunk))
                count = max(1, math.ceil(total * share))
                places = torch.randperm(total, generator=self._generator)[:count].sort().values
                inputs = _wide(design(contraction, node, self.walk.arguments(node, chunk)[0], places))
                wanted = _wide(target(contraction, node, self._wanted(node, chunk, streams), places))
                computed = inputs @ current.mT
                bias = Operands.of(node).bias
                constant = None if bias is None else self.walk.value(bias, chunk)
                residuals = wanted - computed
                if constant is not None:
                    residuals -= constant[contraction.outputs.to(constant.device)][:, None]
                yield Sample(chunk % 2, node, chunk, inputs, wanted, computed, residuals)

    def share(self, contraction: Contraction, step: Step, rows: int) -> tuple[float, int]:
        """Return the share of output positions that gives ``rows`` rows per feature, and its row count."""
        walk = self.walk
        available = [positions(node, walk.dense_result(node, 0)) for node in step]
        everything = sum(total * examples for total, examples in available) * walk.chunks
        wanted = max(2 * rows * contraction.features, LEAST)
        if contraction.features > LIMIT:
            wanted = min(wanted, LIMIT)
        share = min(1.0, wanted / max(everything, 1))
        taken = sum(max(1, math.ceil(total * share)) * examples for total, examples in available)
        return share, taken * walk.chunks

    def _wanted(self, node: fx.Node, chunk: int, streams: bool) -> Tensor:
        walk = self.walk
        wanted: Tensor = walk.dense_result(node, chunk)
        for each in sums(node) if streams else ():
            if walk.has(each.other):
                off = walk.dense_result(each.other, chunk) - walk.twin_result(each.other, chunk)
                wanted = wanted + each.back(off, lambda constant: walk.value(constant, chunk))
        return wanted


def _wide(tensor: Tensor) -> Tensor:
    """At least single precision: products of half precision are slow and coarse."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _batch_norms(structure: Structure) -> list[Step]:
    """The batch norms that share running statistics."""
    found: dict[str, list[fx.Node]] = defaultdict(list)
    for node in structure.capture.graph.nodes:
        if packet(node) is aten.batch_norm:
            mean = named_arguments(node)["running_mean"]
            if isinstance(mean, fx.Node):
                found[structure.capture.tensors.get(mean.name, mean.name)].append(node)
    return [tuple(nodes) for nodes in found.values() if len(nodes) > 1]
