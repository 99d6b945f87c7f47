"""Convolutions and linear layers, and what a plan leaves of their weights.

In each group of a contraction, the kept part of its weight is a matrix ``W [out, features]``. A feature is
one kept input channel at one kernel position. :mod:`disparse_structured.refit.design` builds the ``X`` and
``Y`` of ``Y = X W^T``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx

from disparse_structured.graph.capture import Capture
from disparse_structured.graph.operators import ContractionKind, named_arguments, operator_of, packet
from disparse_structured.graph.schedule import Step
from disparse_structured.graph.unknown_sizes import depends_on_data
from disparse_structured.report.refit import SkippedLayer
from disparse_structured.structure import ChannelGroup, Structure
from disparse_structured.structure.tracing import module_path

aten = torch.ops.aten

_REGRESSED = ("convolution", "transposed convolution", "linear")
"""Families of contractions whose weight is the solution of a regression."""

VARYING = "how many rows it reads depends on the data"
"""Why a layer is left unchanged: two networks choose different rows, which cannot be compared."""

_OTHERS = ("generic convolution", "matmul", "einsum", "bilinear", "recurrent")
"""Families that may contract with a parameter in ways that are not regressed here."""


@dataclass(frozen=True, eq=False)
class Operands:
    """What a contraction of a regressed family reads, from its operator's record."""

    kind: ContractionKind
    data: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    groups: int

    @classmethod
    def of(cls, node: fx.Node) -> Operands:
        """Read those of ``node``."""
        contracts = operator_of(node).contracts
        assert contracts is not None
        assert contracts.weight is not None
        given = named_arguments(node)
        bias = None if contracts.bias is None else given.get(contracts.bias)
        return cls(
            contracts.kind, given[contracts.data], given[contracts.weight], bias, int(given.get("groups", 1))
        )

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        shape: torch.Size = self.weight.meta["val"].shape
        return shape


@dataclass(frozen=True, eq=False)
class Contraction:
    """All operators that use one weight, and its kept part.

    Args:
        weight: the parameter's name.
        nodes: the operators.
        bias: names of what takes an intercept: one bias, or the running means of the batch norms after
            the operators (which subtract it); empty if nothing does.
        subtracts: whether ``bias`` are running means.
        groups: groups of the convolution; 1 for linear layers.
        inputs: int64 ``[groups, in]``, kept positions along the input's channels.
        outputs: int64 ``[groups, out]``, kept positions along the output's channels.
        rows, columns: int64, kept positions of the weight's output and input dimension.
        transposed: whether the weight's input dimension comes first.
    """

    weight: str
    nodes: Step
    bias: tuple[str, ...]
    subtracts: bool
    groups: int
    inputs: Tensor
    outputs: Tensor
    rows: Tensor
    columns: Tensor
    transposed: bool

    @property
    def features(self) -> int:
        """Unknowns of each output channel."""
        return int(self.inputs.shape[1] * math.prod(Operands.of(self.nodes[0]).shape[2:]))

    @property
    def spatial(self) -> int:
        """Spatial dimensions; 0 for a linear layer."""
        return len(Operands.of(self.nodes[0]).shape) - 2

    def lost(self) -> Contraction | None:
        """Return the same outputs from the removed input channels; None if a group has none."""
        read = Operands.of(self.nodes[0])
        shape = read.shape
        groups, size = read.groups, shape[0 if self.transposed else 1]
        columns = np.setdiff1d(np.arange(size), self.columns.numpy())
        if not len(columns) or (groups > 1 and size == (groups if self.transposed else 1)):
            return None
        every = np.arange(groups)[:, None] * shape[1] + columns[None]
        inputs = columns.reshape(groups, -1) if self.transposed else every
        return replace(self, inputs=torch.from_numpy(inputs), columns=torch.from_numpy(columns))

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the kept part of the weight as ``[groups, out, features]``."""
        first, second = (self.columns, self.rows) if self.transposed else (self.rows, self.columns)
        kept = weight.index_select(0, first.to(weight.device)).index_select(1, second.to(weight.device))
        if not self.transposed:
            return kept.reshape(self.groups, -1, math.prod(kept.shape[1:]))
        spatial = list(range(2, kept.ndim))
        split = kept.flip(spatial).reshape(self.groups, -1, *kept.shape[1:])
        return split.transpose(1, 2).reshape(self.groups, kept.shape[1], -1)

    def with_matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        """Copy ``weight`` with its kept part replaced by ``matrix`` ``[groups, out, features]``."""
        first, second = (self.columns, self.rows) if self.transposed else (self.rows, self.columns)
        kernel = weight.shape[2:]
        if self.transposed:
            split = matrix.reshape(self.groups, len(second), -1, *kernel).transpose(1, 2)
            kept = split.reshape(len(first), len(second), *kernel).flip(list(range(2, weight.ndim)))
        else:
            kept = matrix.reshape(len(first), len(second), *kernel)
        result = weight.clone()
        result[first[:, None].to(weight.device), second[None].to(weight.device)] = kept.to(weight.dtype)
        return result


@dataclass(frozen=True, eq=False)
class Layers:
    """``contractions`` in graph order, and other operators that contract with a parameter.

    ``removed`` are the sorted removed positions along a dimension of a parameter or buffer.
    """

    contractions: tuple[Contraction, ...]
    refused: Mapping[fx.Node, SkippedLayer]
    removed: Mapping[tuple[str, int], np.ndarray]


def contractions(structure: Structure, keep: torch.Tensor) -> tuple[Contraction, ...]:
    """Find every contraction with its own weight, and what ``keep`` (bool ``[units]``) leaves of it."""
    return layers(structure, keep).contractions


def layers(structure: Structure, keep: torch.Tensor) -> Layers:
    """Find the contractions, and what could not become one."""
    return DenseLayers.of(structure).under(keep)


@dataclass(frozen=True, eq=False)
class DenseLayers:
    """The layers of a network before anything is removed: found once for any number of masks."""

    groups: tuple[ChannelGroup, ...]
    weights: tuple[_Weight, ...]
    refused: Mapping[fx.Node, SkippedLayer]

    @classmethod
    def of(cls, structure: Structure) -> DenseLayers:
        """Read the graph of ``structure``."""
        capture = structure.capture
        by_weight, refused = _candidates(capture)
        users: dict[str, list[fx.Node]] = defaultdict(list)
        for node in capture.graph.nodes:
            for each in node.all_input_nodes:
                if each.name in capture.tensors and node.op != "output":
                    users[capture.tensors[each.name]].append(node)
        found = []
        for weight, nodes in by_weight.items():
            made = _Weight.of(capture, weight, nodes, users)
            if isinstance(made, str):
                refused.update({node: SkippedLayer(weight, made) for node in nodes})
            else:
                found.append(made)
        return cls(structure.groups, tuple(found), refused)

    def under(self, keep: torch.Tensor, only: Collection[str] | None = None) -> Layers:
        """Return what ``keep``, bool ``[units]``, leaves of them, or only of the weights in ``only``."""
        removed = _removed(self.groups, keep)
        refused = dict(self.refused)
        found = []
        for weight in self.weights:
            if only is not None and weight.name not in only:
                continue
            made = weight.under(removed)
            if isinstance(made, str):
                refused.update({node: SkippedLayer(weight.name, made) for node in weight.nodes})
            else:
                found.append(made)
        return Layers(tuple(found), refused, removed)


def _candidates(capture: Capture) -> tuple[dict[str, list[fx.Node]], dict[fx.Node, SkippedLayer]]:
    """The operators that contract with each parameter, and those that cannot be regressed."""
    constant = _constants(capture)
    by_weight: dict[str, list[fx.Node]] = defaultdict(list)
    refused: dict[fx.Node, SkippedLayer] = {}
    for node in capture.graph.nodes:
        contracts = operator_of(node).contracts
        if contracts is None:
            continue
        if contracts.kind in _REGRESSED:
            read = Operands.of(node).weight
            if read.name in capture.tensors and depends_on_data(node):
                refused[node] = SkippedLayer(capture.tensors[read.name], VARYING)
            elif read.name in capture.tensors:
                by_weight[capture.tensors[read.name]].append(node)
            else:
                names = sorted(constant.get(read, ())) or [module_path(node) or node.name]
                refused[node] = SkippedLayer(names[0], "its weight is computed from other tensors")
        elif contracts.kind in _OTHERS:
            names = [name for each in node.all_input_nodes for name in sorted(constant.get(each, ()))]
            if names:
                layer = names[0] if len(names) == 1 else module_path(node) or names[0]
                refused[node] = SkippedLayer(layer, f"{node.target} cannot be regressed")
    return by_weight, refused


def _constants(capture: Capture) -> dict[fx.Node, frozenset[str]]:
    """The nodes that depend only on parameters and buffers, and which ones."""
    found: dict[fx.Node, frozenset[str]] = {}
    for node in capture.graph.nodes:
        if node.name in capture.tensors:
            found[node] = frozenset([capture.tensors[node.name]])
        elif node.op == "call_function" and node.all_input_nodes:
            if all(each in found for each in node.all_input_nodes):
                found[node] = frozenset().union(*(found[each] for each in node.all_input_nodes))
    return found


@dataclass(frozen=True, eq=False)
class _Weight:
    """A dense contraction; the fields are as in :class:`Contraction`, ``shape`` is that of the weight."""

    name: str
    nodes: Step
    shape: torch.Size
    groups: int
    transposed: bool
    bias: tuple[str, ...]
    subtracts: bool

    @classmethod
    def of(
        cls, capture: Capture, name: str, nodes: list[fx.Node], users: Mapping[str, list[fx.Node]]
    ) -> _Weight | str:
        """The contraction with weight ``name``, or why there is none."""
        reads = [Operands.of(node) for node in nodes]
        first = reads[0]
        if first.weight.meta["val"].is_complex():
            return "its weight is complex"
        if users[name] != nodes or any(each.data is first.weight for each in reads):
            return "its weight is used in other ways as well"
        operators = {(packet(node), each.groups) for node, each in zip(nodes, reads, strict=True)}
        if len(operators) > 1 or len(first.shape) < 2:
            return "its weight is used by different operators"
        transposed = first.kind == "transposed convolution"
        bias, subtracts = _intercept(capture, nodes, users)
        return cls(name, tuple(nodes), first.shape, first.groups, transposed, bias, subtracts)

    def under(self, removed: Mapping[tuple[str, int], np.ndarray]) -> Contraction | str:
        """What is left without the positions ``removed``, or why that cannot be regressed."""
        shape, groups, transposed = self.shape, self.groups, self.transposed
        columns = _kept(shape[0 if transposed else 1], removed.get((self.name, 0 if transposed else 1)))
        rows = _kept(shape[1 if transposed else 0], removed.get((self.name, 1 if transposed else 0)))
        split, size = (columns if transposed else rows), shape[0] // groups
        left, counts = np.unique(split // size, return_counts=True)
        depthwise = groups > 1 and (shape[0] // groups if transposed else shape[1]) == 1
        if len(set(counts.tolist())) > 1 or (len(left) < groups and not depthwise):
            return "its groups lose different numbers of channels"
        if not depthwise:
            left = np.arange(groups)
        per_group = split.reshape(len(left), -1)
        others = left[:, None] * shape[1] + (rows if transposed else columns)[None]
        inputs, outputs = (per_group, others) if transposed else (others, per_group)
        return Contraction(
            self.name, self.nodes, self.bias, self.subtracts,
            len(left),  # a depthwise convolution loses a group with its channel
            torch.from_numpy(inputs), torch.from_numpy(outputs),
            torch.from_numpy(rows), torch.from_numpy(columns), transposed,
        )  # fmt: skip


def _intercept(
    capture: Capture, nodes: list[fx.Node], users: Mapping[str, list[fx.Node]]
) -> tuple[tuple[str, ...], bool]:
    """What takes an intercept of all ``nodes``, and whether it is subtracted; see :class:`Contraction`."""
    tensors = capture.tensors
    biases = [Operands.of(node).bias for node in nodes]
    names = {tensors.get(bias.name) for bias in biases if isinstance(bias, fx.Node)}
    if all(isinstance(bias, fx.Node) for bias in biases) and len(names) == 1:
        (name,) = names
        return ((name,), False) if name is not None and set(users[name]) == set(nodes) else ((), False)
    if any(bias is not None for bias in biases):
        return (), False
    means: list[str] = []
    for node in nodes:
        readers = [user for user in node.users if user.op != "output"]
        if len(readers) != 1 or packet(readers[0]) is not aten.batch_norm:
            return (), False
        norm = named_arguments(readers[0])
        mean = norm["running_mean"]
        name = tensors.get(mean.name) if isinstance(mean, fx.Node) else None
        if norm["input"] is not node or norm["training"] or name is None or users[name] != [readers[0]]:
            return (), False
        means.append(name)
    return tuple(means), True


def _removed(groups: Iterable[ChannelGroup], keep: torch.Tensor) -> dict[tuple[str, int], np.ndarray]:
    """Sorted positions, along a dimension of a parameter, of the units that ``keep`` removes."""
    removed: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    kept = np.asarray(keep, dtype=bool)
    for group in groups:
        lost = ~kept[group.slice]
        if lost.any():
            for member in group.members:
                removed[member.parameter, member.dim].append(member.index[lost].reshape(-1))
    return {place: np.unique(np.concatenate(found)) for place, found in removed.items()}


def _kept(size: int, removed: np.ndarray | None) -> np.ndarray:
    positions = np.arange(size)
    return positions if removed is None else np.delete(positions, removed)
