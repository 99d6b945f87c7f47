"""The masked twin: the dense network that reads zeros where a plan removes.

It is the specification of "removed". Channel normalisers leave removed channels out of their
statistics, because the smaller network will not have them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from disparse_structured.graph.instrument import Argument, Place, argument, instrumented, put
from disparse_structured.graph.operators import operator_of
from disparse_structured.structure import Consumer, Structure


def masked_twin(structure: Structure, keep: torch.Tensor) -> fx.GraphModule:
    """The exported dense graph with masks, for ``structure.capture.run(state, inputs, twin)``.

    ``keep`` is bool ``[units]``, True = keep.
    """
    readers: dict[Place, list[nn.Module]] = defaultdict(list)
    for (place, dim), positions in removed_reads(structure, keep).items():
        readers[place].append(ZeroAt(dim, positions))
    return instrumented(structure.capture, readers, kept_statistics(structure, keep))


def removed_reads(structure: Structure, keep: torch.Tensor) -> dict[tuple[Place, int], np.ndarray]:
    """The places and dimensions that read units which ``keep`` removes, and at which positions (sorted)."""
    found: dict[tuple[Place, int], list[np.ndarray]] = defaultdict(list)
    for consumer, positions in _removed(structure, keep):
        if not consumer.takes_statistics:
            found[(consumer.node, consumer.arg), consumer.dim].append(positions)
    return {key: np.sort(np.concatenate(positions)) for key, positions in found.items()}


def kept_statistics(structure: Structure, keep: torch.Tensor) -> dict[str, nn.Module]:
    """Replacements for what takes statistics over units that ``keep`` removes, by node."""
    found: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for consumer, positions in _removed(structure, keep):
        if consumer.takes_statistics:
            found[consumer.node, consumer.dim].append(positions)
    nodes = {node.name: node for node in structure.capture.graph.nodes}
    return {
        name: _kept_only(nodes[name], dim, np.concatenate(positions))
        for (name, dim), positions in found.items()
    }


class MaskedReads:
    """What the masked twin of ``keep`` (bool ``[units]``) reads and computes, for who runs it by operator."""

    def __init__(self, structure: Structure, keep: torch.Tensor) -> None:
        self._structure = structure
        self._keep = np.asarray(keep, dtype=bool)
        self._reads: dict[str, list[tuple[Argument, ZeroAt]]] = defaultdict(list)
        for ((node, place), dim), removed in removed_reads(structure, keep).items():
            self._reads[node].append((place, ZeroAt(dim, removed)))
        self._replaced = kept_statistics(structure, keep)

    def touches(self, node: fx.Node) -> bool:
        """Whether ``node`` itself reads or computes anything else than in the dense network."""
        return node.name in self._reads or node.name in self._replaced

    def differs(self, other: MaskedReads) -> set[str]:
        """Operators that read or normalise units which only one of two masked twins of a network keeps."""
        changed = self._keep != other._keep
        return {
            consumer.node
            for group in self._structure.groups
            if changed[group.slice].any()
            for consumer in group.consumers
            if consumer.index[changed[group.slice]].size
        }

    def arguments(self, node: fx.Node, value: Callable[[fx.Node], Any]) -> tuple[list[Any], dict[str, Any]]:
        """What ``node`` reads when ``value`` gives what other nodes computed."""
        args, kwargs = arguments(node, value)
        for place, zero in self._reads.get(node.name, ()):
            put(args, place, zero(argument(args, place)))
        return args, kwargs

    def target(self, node: fx.Node) -> Callable[..., Any]:
        """What ``node`` computes from that."""
        replaced: Mapping[str, Any] = self._replaced
        target: Callable[..., Any] = replaced.get(node.name, node.target)
        return target


def arguments(node: fx.Node, value: Callable[[fx.Node], Any]) -> tuple[list[Any], dict[str, Any]]:
    """What ``node`` reads in the dense network when ``value`` gives what other nodes computed."""
    return list(fx.map_arg(node.args, value)), dict(fx.map_arg(node.kwargs, value))


def _removed(structure: Structure, keep: torch.Tensor) -> Iterator[tuple[Consumer, np.ndarray]]:
    keep_units = np.asarray(keep, dtype=bool)
    for group in structure.groups:
        gone = ~keep_units[group.slice]
        if gone.any():
            for consumer in group.consumers:
                yield consumer, consumer.index[gone].reshape(-1)


class ZeroAt(nn.Module):
    """Reads zeros at ``index`` along ``dim``, whatever stands there, NaN included."""

    index: torch.Tensor

    def __init__(self, dim: int, index: np.ndarray) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", torch.from_numpy(index))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """``value`` with zeros."""
        return value.index_fill(self.dim, self.index.to(value.device), 0)


def _kept_only(node: fx.Node, dim: int, removed: np.ndarray) -> nn.Module:
    normalizes = operator_of(node).normalizes
    if normalizes == "each channel":
        return KeptPositions(node.target, dim, removed)
    if normalizes == "over channels":
        return KeptOnly(node.target, dim, removed)
    return KeptAverage(node.target, dim, removed)


class _Kept(nn.Module):
    """An operator without the ``removed`` positions of dimension ``dim`` of what it reads."""

    def __init__(self, operator: Any, dim: int, removed: np.ndarray) -> None:
        super().__init__()
        self.operator = operator
        self.dim = dim
        self.removed = set(removed.tolist())

    def _kept(self, value: torch.Tensor) -> torch.Tensor:
        """int64: the positions that stay."""
        kept = [i for i in range(value.shape[self.dim]) if i not in self.removed]
        return torch.tensor(kept, device=value.device)


class KeptAverage(_Kept):
    """A mean, a maximum or another statistic of the kept positions of dimension ``dim``."""

    def forward(self, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The statistic."""
        kept = self._kept(value)
        return self.operator(value.index_select(self.dim, kept), *args, **kwargs)


class KeptPositions(_Kept):
    """A batch or instance normalisation whose statistics leave out positions of dimension ``dim``."""

    def forward(self, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The normalisation of the kept positions of ``value``; zeros elsewhere."""
        kept = self._kept(value)
        result = self.operator(value.index_select(self.dim, kept), *args, **kwargs)
        return torch.zeros_like(value).index_copy(self.dim, kept, result)


class KeptOnly(_Kept):
    """A layer, RMS or group normalisation with statistics over the kept channels; zeros elsewhere."""

    def forward(
        self,
        value: torch.Tensor,
        shape_or_groups: Any,
        weight: torch.Tensor | None = None,
        bias: Any = None,
        *rest: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The normalisation of the kept channels of ``value``, with the operator's own arguments."""
        kept = self._kept(value)
        if isinstance(shape_or_groups, list | tuple):
            shape_or_groups = [len(kept)]
        affine = [
            item.index_select(0, kept) if isinstance(item, torch.Tensor) else item for item in (weight, bias)
        ]
        arguments = [*affine, *rest]
        while arguments and arguments[-1] is None:
            arguments.pop()
        result = self.operator(value.index_select(self.dim, kept), shape_or_groups, *arguments, **kwargs)
        return torch.zeros_like(value).index_copy(self.dim, kept, result)
