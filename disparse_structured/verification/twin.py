"""The masked twin: the dense network that reads zeros where a plan removes.

It specifies what "removed" means. Channel normalizers leave removed channels out of their
statistics, because the smaller network will not have them.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from disparse_structured.graph.capture import Capture
from disparse_structured.graph.instrument import Argument, Place, argument, instrumented, put
from disparse_structured.graph.operators import operator_of
from disparse_structured.structure import Consumer, Structure


def masked_twin(structure: Structure, keep: torch.Tensor) -> fx.GraphModule:
    """Return the exported dense graph with masks, for ``structure.capture.run(state, inputs, twin)``.

    ``keep`` is bool ``[units]``, True = keep.
    """
    readers: dict[Place, list[nn.Module]] = defaultdict(list)
    for (place, dim), positions in removed_reads(structure, keep).items():
        readers[place].append(ZeroAt(dim, positions))
    return instrumented(structure.capture, readers, kept_statistics(structure, keep))


_Removed = tuple[Consumer, np.ndarray]
"""A consumer of removed units, and the positions where it reads them."""


def removed_reads(structure: Structure, keep: torch.Tensor) -> dict[tuple[Place, int], np.ndarray]:
    """Find the places and dimensions that read units ``keep`` removes, and their sorted positions."""
    return _reads(_removed(structure, keep))


def kept_statistics(structure: Structure, keep: torch.Tensor) -> dict[str, nn.Module]:
    """Build replacements, by node, for what takes statistics over units ``keep`` removes."""
    return _statistics(structure.capture, _removed(structure, keep))


def _removed(structure: Structure, keep: torch.Tensor) -> Iterator[_Removed]:
    keep_units = np.asarray(keep, dtype=bool)
    for group in structure.groups:
        dropped = ~keep_units[group.slice]
        if dropped.any():
            for consumer in group.consumers:
                yield consumer, consumer.index[dropped].reshape(-1)


def _reads(removed: Iterable[_Removed]) -> dict[tuple[Place, int], np.ndarray]:
    found: dict[tuple[Place, int], list[np.ndarray]] = defaultdict(list)
    for consumer, positions in removed:
        if not consumer.takes_statistics:
            found[(consumer.node, consumer.arg), consumer.dim].append(positions)
    return {key: np.sort(np.concatenate(positions)) for key, positions in found.items()}


def _statistics(capture: Capture, removed: Iterable[_Removed]) -> dict[str, nn.Module]:
    found: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for consumer, positions in removed:
        if consumer.takes_statistics:
            found[consumer.node, consumer.dim].append(positions)
    return {
        name: _kept_only(capture.nodes[name], dim, np.concatenate(positions))
        for (name, dim), positions in found.items()
    }


class MaskedReads:
    """What each operator of the masked twin of ``keep`` (bool ``[units]``) reads and computes."""

    def __init__(self, structure: Structure, keep: torch.Tensor) -> None:
        self._structure = structure
        self._keep = np.asarray(keep, dtype=bool)
        self._consumers: dict[str, list[tuple[slice, Consumer]]] = defaultdict(list)
        for group in structure.groups:
            for consumer in group.consumers:
                self._consumers[consumer.node].append((group.slice, consumer))
        self._masked: dict[str, list[tuple[Argument, ZeroAt]]] = {}
        self._replaced: dict[str, nn.Module] = {}
        self._mask(self._consumers)

    def under(self, keep: torch.Tensor) -> MaskedReads:
        """Return the same for another ``keep``, sharing what reads none of the units that differ."""
        other = copy.copy(self)
        other._keep = np.asarray(keep, dtype=bool)
        other._masked, other._replaced = dict(self._masked), dict(self._replaced)
        other._mask(other.differs(self))
        return other

    def _mask(self, nodes: Iterable[str]) -> None:
        """Masks what ``nodes`` read, and discards their earlier masks."""
        removed: list[_Removed] = []
        for node in nodes:
            self._masked.pop(node, None)
            self._replaced.pop(node, None)
            for units, consumer in self._consumers[node]:
                dropped = ~self._keep[units]
                if dropped.any():
                    removed.append((consumer, consumer.index[dropped].reshape(-1)))
        for ((node, place), dim), positions in _reads(removed).items():
            self._masked.setdefault(node, []).append((place, ZeroAt(dim, positions)))
        self._replaced.update(_statistics(self._structure.capture, removed))

    def touches(self, node: fx.Node) -> bool:
        """Return whether ``node`` itself reads or computes anything different from the dense network."""
        return node.name in self._masked or node.name in self._replaced

    def differs(self, other: MaskedReads) -> set[str]:
        """Return the operators that read or normalize units that only one of the two twins keeps."""
        changed = self._keep != other._keep
        return {
            consumer.node
            for group in self._structure.groups
            if changed[group.slice].any()
            for consumer in group.consumers
            if consumer.index[changed[group.slice]].size
        }

    def arguments(self, node: fx.Node, value: Callable[[fx.Node], Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return what ``node`` reads; ``value`` gives the results of other nodes."""
        args, kwargs = arguments(node, value)
        for place, zero in self._masked.get(node.name, ()):
            put(args, place, zero(argument(args, place)))
        return args, kwargs

    def target(self, node: fx.Node) -> Callable[..., Any]:
        """Return the callable that ``node`` applies to them."""
        replaced: Mapping[str, Any] = self._replaced
        target: Callable[..., Any] = replaced.get(node.name, node.target)
        return target


def arguments(node: fx.Node, value: Callable[[fx.Node], Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return what ``node`` reads in the dense network; ``value`` gives the results of other nodes."""
    return list(fx.map_arg(node.args, value)), dict(fx.map_arg(node.kwargs, value))


class ZeroAt(nn.Module):
    """Reads zeros at ``index`` along ``dim``, whatever the values there, even NaN."""

    index: torch.Tensor

    def __init__(self, dim: int, index: np.ndarray) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", torch.from_numpy(index))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Fill ``value`` with zeros there."""
        return value.index_fill(self.dim, self.index.to(value.device), 0)


def _kept_only(node: fx.Node, dim: int, removed: np.ndarray) -> nn.Module:
    normalizes = operator_of(node).normalizes
    if normalizes == "each channel":
        return KeptPositions(node.target, dim, removed)
    if normalizes == "over channels":
        return KeptOnly(node.target, dim, removed)
    return KeptAverage(node.target, dim, removed)


class _Kept(nn.Module):
    """An operator that skips the ``removed`` positions along dimension ``dim`` of its input."""

    def __init__(self, operator: Any, dim: int, removed: np.ndarray) -> None:
        super().__init__()
        self.operator = operator
        self.dim = dim
        self.removed = set(removed.tolist())

    def _kept(self, value: torch.Tensor) -> torch.Tensor:
        """int64: the kept positions."""
        kept = [i for i in range(value.shape[self.dim]) if i not in self.removed]
        return torch.tensor(kept, device=value.device)


class KeptAverage(_Kept):
    """A mean, a maximum or another statistic of the kept positions of dimension ``dim``."""

    def forward(self, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute the statistic."""
        kept = self._kept(value)
        return self.operator(value.index_select(self.dim, kept), *args, **kwargs)


class KeptPositions(_Kept):
    """A batch or instance normalization whose statistics leave out positions of dimension ``dim``."""

    def forward(self, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Normalize the kept positions of ``value``; return zeros elsewhere."""
        kept = self._kept(value)
        result = self.operator(value.index_select(self.dim, kept), *args, **kwargs)
        return torch.zeros_like(value).index_copy(self.dim, kept, result)


class KeptOnly(_Kept):
    """A layer, RMS or group normalization with statistics over the kept channels; zeros elsewhere."""

    def forward(
        self,
        value: torch.Tensor,
        shape_or_groups: Any,
        weight: torch.Tensor | None = None,
        bias: Any = None,
        *rest: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Normalize the kept channels of ``value``, with the operator's own arguments."""
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
