"""Gates on what consumers read, and their gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from disparse_structured.data.precision import as_real
from disparse_structured.graph.instrument import Argument, Place, instrumented
from disparse_structured.graph.operators import operator_of
from disparse_structured.structure import ChannelGroup, Consumer, Structure
from disparse_structured.structure.tracing import module_path
from disparse_structured.verification.twin import ZeroAt, kept_statistics, removed_reads

_CHUNK = 1 << 17
"""Elements of a product computed at a time, so that they stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Read:
    """One dimension of one argument of one operator, and the units whose gates multiply it.

    ``positions`` and ``units`` are int64 of equal length: the gate of unit ``units[i]`` (flat over all
    groups) multiplies position ``positions[i]``. ``sample`` is as in :class:`Consumer`.
    """

    place: Place
    dim: int
    positions: torch.Tensor
    units: torch.Tensor
    sample: tuple[int, torch.Tensor] | None
    layer: str


def reads(structure: Structure) -> tuple[Read, ...]:
    """Find every read with gates, in graph order.

    Normalizing consumers have none: what they leave out is read, and gated, after them. An operator
    that reads a unit twice in one product (both sides of a matrix product) is gated on one side, so
    that the gate counts once. What is read inside a fused operator (a recurrent layer's own state) has no
    gates if the units are also read elsewhere, because its examples cannot be told apart.
    """
    positions: dict[tuple[Place, int], list[np.ndarray]] = defaultdict(list)
    units: dict[tuple[Place, int], list[np.ndarray]] = defaultdict(list)
    samples: dict[tuple[Place, int], tuple[int, np.ndarray] | None] = {}
    for group in structure.groups:
        for consumer in _gated(group):
            key = (consumer.node, consumer.arg), consumer.dim
            positions[key].append(consumer.index.reshape(-1))
            flat = group.start + np.arange(group.units)
            units[key].append(np.repeat(flat, consumer.index.shape[1]))
            samples[key] = consumer.sample
    order = {node.name: (number, node) for number, node in enumerate(structure.capture.graph.nodes)}
    found = []
    for key in sorted(positions, key=lambda key: (order[key[0][0]][0], _numbers(key[0][1]), key[1])):
        place, dim = key
        sample = samples[key]
        found.append(
            Read(
                place,
                dim,
                torch.from_numpy(np.concatenate(positions[key])),
                torch.from_numpy(np.concatenate(units[key])),
                None if sample is None else (sample[0], torch.tensor(sample[1])),
                module_path(order[place[0]][1]) or place[0],
            )
        )
    return tuple(found)


def _gated(group: ChannelGroup) -> list[Consumer]:
    """The consumers of ``group`` that have gates."""
    chosen: dict[str, Consumer] = {}
    for consumer in group.consumers:
        known = chosen.get(consumer.node)
        free = not (consumer.normalizes or consumer.is_inside)
        if free and (known is None or (known.sample is None and consumer.sample)):
            chosen[consumer.node] = consumer
    return list(chosen.values()) or [consumer for consumer in group.consumers if consumer.is_inside]


def _numbers(place: Argument) -> tuple[int, ...]:
    return place if isinstance(place, tuple) else (place,)


def gated(
    structure: Structure,
    gates: Mapping[Read, nn.Module],
    keep: torch.Tensor,
    replacements: Mapping[str, nn.Module] | None = None,
) -> fx.GraphModule:
    """Build the masked twin of ``keep`` with ``gates`` on reads, and ``replacements`` for some nodes.

    A gate masks its own read; reads without a gate are masked here.
    """
    readers: dict[Place, list[nn.Module]] = defaultdict(list)
    for read, gate in gates.items():
        readers[read.place].append(gate)
    with_gate = {(read.place, read.dim) for read in gates}
    for (place, dim), positions in removed_reads(structure, keep).items():
        if (place, dim) not in with_gate:
            readers[place].append(ZeroAt(dim, positions))
    replaced = {**_differentiable(structure), **(replacements or {}), **kept_statistics(structure, keep)}
    return instrumented(structure.capture, readers, replaced, differentiable=True)


def _differentiable(structure: Structure) -> dict[str, nn.Module]:
    """Replacements for operators that torch does not differentiate everywhere."""
    return {
        node.name: WithoutCudnn(node.target)
        for node in structure.capture.graph.nodes
        if (contracts := operator_of(node).contracts) is not None and contracts.kind == "recurrent"
    }


def twice_differentiable(structure: Structure) -> dict[str, nn.Module]:
    """Build replacements for operators that torch differentiates only once."""
    return {
        node.name: Substitute(substitute)
        for node in structure.capture.graph.nodes
        if (substitute := operator_of(node).with_second_derivative) is not None
    }


class Recorder:
    """Collects the gradients of gates during one backward pass.

    ``gradients`` is ``[rows, units]``: one row per example, or one for the whole batch. ``switch`` is
    a leaf that every gate depends on: a backward pass to it visits every gate and no weight.
    """

    def __init__(self, units: int, layers: Sequence[str], device: torch.device) -> None:
        self.switch = torch.zeros((), device=device, requires_grad=True)
        self.layers = layers
        # Metal has no double precision.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._units = units
        self.gradients = torch.zeros(0, units, dtype=self._dtype, device=device)
        self.totals = torch.zeros(len(layers), dtype=self._dtype, device=device)
        self.per_sample = False

    def clear(self, rows: int, per_sample: bool) -> None:
        """Reset for a backward pass."""
        self.gradients = self.gradients.new_zeros(rows, self._units)
        self.totals.zero_()
        self.per_sample = per_sample

    def first_bad_layer(self) -> str | None:
        """Return the layer nearest to the loss whose gradient is not finite."""
        bad = (~self.totals.isfinite()).nonzero()
        return self.layers[int(bad[-1])] if len(bad) else None


class Gate(nn.Module):
    """Passes its input on; the backward pass records the gradient of a factor on it.

    The factor is 1 for units of ``keep`` (bool ``[units]``) and 0 for the others, whose positions are read
    as zeros: their gradient estimates the effect of switching them on.
    """

    def __init__(self, number: int, read: Read, recorder: Recorder, keep: torch.Tensor) -> None:
        super().__init__()
        device = recorder.switch.device
        off = read.positions[~keep[read.units]]
        self.off = off.to(device) if len(off) else None
        self.number = number
        self.recorder = recorder
        self.dim = read.dim
        self.positions = _as_slice(read.positions, device)
        self.units = _as_slice(read.units, device)
        self.sample = None if read.sample is None else (read.sample[0], _as_slice(read.sample[1], device))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Return ``value``, with zeros where units are off."""
        return _Record.apply(value, self.recorder.switch, self)  # type: ignore[no-any-return]

    def record(self, value: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add ``value * gradient``, summed over everything but the gate and the sample."""
        rows: slice | torch.Tensor = slice(None)
        if self.sample is None or not self.recorder.per_sample:
            products = product_sums(value, gradient, (self.dim,))[None]
        else:
            products = product_sums(value, gradient, (self.sample[0], self.dim))
            rows = self.sample[1]
        gradients = self.recorder.gradients
        products = products.to(gradients.dtype)
        self.recorder.totals[self.number] += products.sum()
        products = products[:, self.positions]
        if isinstance(rows, torch.Tensor):
            products = products.new_zeros(len(gradients), products.shape[1]).index_add_(0, rows, products)
            rows = slice(None)
        if isinstance(self.units, slice):
            gradients[rows, self.units] += products
        else:
            gradients[rows].index_add_(1, self.units, products)


class _Record(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, switch: torch.Tensor, gate: Gate) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(value)
        ctx.gate = gate
        return value if gate.off is None else value.index_fill(gate.dim, gate.off, 0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor | None) -> tuple[torch.Tensor | None, None, None]:
        if gradient is not None:
            (value,) = ctx.saved_tensors
            gate = ctx.gate
            gate.record(value, gradient)
            if gate.off is not None:
                gradient = gradient.index_fill(gate.dim, gate.off, 0)
        return gradient, None, None


class Factor(nn.Module):
    """Multiplies what is read by gates ``[examples, units]``, for higher-order derivatives."""

    def __init__(self, read: Read, gates: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.read = read
        self.gates = gates

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Multiply ``value`` by the gates along the dimension read, each example by its own."""
        gates, read = self.gates(), self.read
        shape = [1] * value.ndim
        shape[read.dim] = value.shape[read.dim]
        if read.sample is not None and len(gates) > 1:
            dim, samples = read.sample
            gates = gates[samples.to(gates.device)]
            shape[dim] = len(gates)
        factors = gates.new_ones(len(gates), value.shape[read.dim])
        factors = factors.index_copy(
            1, read.positions.to(gates.device), gates[:, read.units.to(gates.device)]
        ).to(value.dtype)
        transposed = read.sample is not None and read.sample[0] % value.ndim > read.dim % value.ndim
        return value * (factors.T if transposed else factors).reshape(shape)


class WithoutCudnn(nn.Module):
    """A recurrent layer of the exported graph: cuDNN has no gradient in eval mode, and no second one."""

    def __init__(self, operator: Callable[..., Any]) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the operator."""
        with torch.backends.cudnn.flags(enabled=False):
            return self.operator(*args, **kwargs)


class Substitute(nn.Module):
    """Replaces an operator with a function that computes the same."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the function."""
        return self.function(*args, **kwargs)


def _as_slice(index: torch.Tensor, device: torch.device) -> slice | torch.Tensor:
    """A slice if ``index`` is consecutive, as it nearly always is: much cheaper than a gather."""
    start = int(index[0])
    if torch.equal(index, torch.arange(start, start + len(index))):
        return slice(start, start + len(index))
    return index.to(device)


def product_sums(value: torch.Tensor, gradient: torch.Tensor, kept: tuple[int, ...]) -> torch.Tensor:
    """Sum ``value * gradient`` over every dimension but those of ``kept``, in the order of ``kept``.

    It works in pieces along the first dimension: a product as large as the activation would cost more
    in memory traffic than the arithmetic does. The parts of a complex number count as two values.
    """
    if value.dtype in (torch.float16, torch.bfloat16):
        value, gradient = value.float(), gradient.float()
    kept = tuple(dim % value.ndim for dim in kept)
    value, gradient = as_real(value), as_real(gradient)
    summed = [dim for dim in range(value.ndim) if dim not in kept]
    pieces = min(len(value), -(-value.numel() // _CHUNK)) if value.is_cpu else 1
    if pieces <= 1:
        sums = _sum(value * gradient, summed)
    else:
        step = -(-len(value) // pieces)
        parts = [
            _sum(one * other, summed)
            for one, other in zip(value.split(step), gradient.split(step), strict=True)
        ]
        sums = torch.cat(parts) if 0 in kept else torch.stack(parts).sum(0)
    order = sorted(kept)
    return sums.permute([order.index(dim) for dim in kept])


def _sum(product: torch.Tensor, dims: list[int]) -> torch.Tensor:
    return product.sum(dims) if dims else product
