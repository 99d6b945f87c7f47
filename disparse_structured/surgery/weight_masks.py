"""Removed units held at zero in a model that continues to train, so that they can be regrown.

A unit is off when nothing reads it: the slices of the weights that read it (the consumers of its channel
group) are zero in the model itself. So the model runs, trains, exports and compiles as usual, and is the
masked twin. The slices' values are saved and return with the unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from disparse_structured.errors import PlanError
from disparse_structured.graph.named_tensors import detached_tensors
from disparse_structured.graph.operators import named_arguments, operator_of
from disparse_structured.structure import ChannelGroup, Structure
from disparse_structured.verification.copy import TOLERANCES, VerificationCopy
from disparse_structured.verification.twin import masked_twin


@dataclass(frozen=True, eq=False)
class Slices:
    """The positions of one weight that read units: position ``positions[i]`` reads unit ``units[i]``."""

    dim: int
    positions: torch.Tensor
    units: torch.Tensor

    def of(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the positions, int64, that read the units of ``chosen``, bool ``[units]``."""
        return self.positions[chosen[self.units]]


class WeightMasks:
    """Switches units of ``model`` off and on, in place.

    After every optimizer step, :meth:`enforce` resets the slices that are off to zero.

    Args:
        model: the dense model; its parameters keep their identity and shape.
        structure: of that model.

    Attributes:
        keep: bool ``[units]``, True = on.
        held: names of the groups that cannot be switched by zeros in weights (a layer or group
            normalization takes statistics over them, a product of activations reads them, or one weight
            reads them and, along its other dimension, another group); they stay on.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        readers = _readers(structure)
        self.held = _held(model, structure, readers)
        self._slices = _slices(structure, readers, self.held)
        # Owners rather than tensors: a module's tensors may be replaced (another device or type).
        self._owners = {name: _owner(model, name) for name in self._slices}
        self._saved = {name: self._weight(name).detach().clone() for name in self._slices}
        self.keep = torch.ones(structure.units, dtype=torch.bool)
        self._structure = structure
        self._off = self._find_off()

    def switch(self, keep: torch.Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Make ``keep`` (bool ``[units]``) the units that are on.

        The weights that read a removed unit are saved; a regrown unit gets them back, with their
        optimizer state reset.

        Raises:
            PlanError: a unit of a held group would be removed.
        """
        for group in self._structure.groups:
            removed = int((~keep[group.slice]).sum())
            if group.name in self.held and removed:
                raise PlanError(
                    f"group {group.name!r} cannot be masked, but the mask removes {removed} of its units. "
                    "Leave the groups of WeightMasks.held whole."
                )
        with torch.no_grad():
            for name, slices in self._slices.items():
                weight = self._weight(name)
                saved = self._saved[name] = self._saved[name].to(weight)
                off = slices.of(self.keep & ~keep).to(weight.device)
                on = slices.of(keep & ~self.keep).to(weight.device)
                if len(off):
                    saved.index_copy_(slices.dim, off, weight.index_select(slices.dim, off))
                    weight.index_fill_(slices.dim, off, 0)
                if len(on):
                    weight.index_copy_(slices.dim, on, saved.index_select(slices.dim, on))
                    if optimizer is not None:
                        _reset_state(optimizer, weight, slices.dim, on)
        self.keep = keep.clone()
        self._off = self._find_off()

    def enforce(self) -> None:
        """Zero what reads units that are off; call it after anything that changes the weights."""
        with torch.no_grad():
            for name in self._off:
                weight = self._weight(name)
                weight.mul_(self._part(name, weight).factor)

    @contextmanager
    def revealed(self) -> Iterator[None]:
        """Restore all weights temporarily, for scoring with ``keep=``, which masks itself."""
        with torch.no_grad():
            for name in self._off:
                weight = self._weight(name)
                part = self._part(name, weight)
                values = self._saved[name].to(weight).index_select(part.dim, part.positions)
                weight.index_copy_(part.dim, part.positions, values)
        try:
            yield
        finally:
            self.enforce()

    def state_dict(self) -> dict[str, Any]:
        """Return what is on, and the saved slices; the model's weights are not included."""
        return {"keep": self.keep, "vault": dict(self._saved)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load :meth:`state_dict`; the model's weights are loaded separately."""
        self.keep = state["keep"].cpu().clone()
        for name, saved in self._saved.items():
            saved.copy_(state["vault"][name])
        self._off = self._find_off()

    def _weight(self, name: str) -> torch.Tensor:
        owner, leaf = self._owners[name]
        weight: torch.Tensor = getattr(owner, leaf)
        return weight

    def _part(self, name: str, weight: torch.Tensor) -> _Off:
        """What is off in a weight, on its current device and in its current type."""
        part = self._off[name]
        if part.factor.device != weight.device or part.factor.dtype != weight.dtype:
            part = _Off(part.dim, part.positions.to(weight.device), part.factor.to(weight))
            self._off[name] = part
        return part

    def _find_off(self) -> dict[str, _Off]:
        found = {}
        for name, slices in self._slices.items():
            weight = self._weight(name)
            positions = slices.of(~self.keep).to(weight.device)
            if len(positions):
                shape = [1] * weight.ndim
                shape[slices.dim] = -1
                factor = weight.new_ones(weight.shape[slices.dim]).index_fill(0, positions, 0)
                found[name] = _Off(slices.dim, positions, factor.view(shape))
        return found


@dataclass(frozen=True, eq=False)
class _Off:
    """The positions of a weight that are off; ``factor`` broadcasts to 0 there and to 1 elsewhere.

    Multiplying by it takes half as long as filling the positions: rows of a convolution are short.
    """

    dim: int
    positions: torch.Tensor
    factor: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Reader:
    """``positions`` int64 ``[units, multiplicity]`` along ``dim`` of a weight read the units of a group."""

    weight: str
    dim: int
    positions: np.ndarray


def _readers(structure: Structure) -> dict[str, list[_Reader]]:
    """The weights that read each group; groups that a normalizer takes statistics over are left out."""
    nodes = structure.capture.nodes
    found: dict[str, list[_Reader]] = {}
    for group in structure.groups:
        if any(consumer.takes_statistics for consumer in group.consumers):
            continue
        places = {_weight_read_by(nodes[c.node], structure) for c in group.consumers if c.arg == 0}
        found[group.name] = [
            _Reader(member.parameter, member.dim, member.index)
            for member in group.members
            if (member.parameter, member.dim) in places
        ]
    return _along_one_dimension(found)


def _along_one_dimension(readers: Mapping[str, list[_Reader]]) -> dict[str, list[_Reader]]:
    """Leaves out groups read by a weight that is read along both dimensions (tied weights)."""
    dims: dict[str, set[int]] = defaultdict(set)
    for found in readers.values():
        for reader in found:
            dims[reader.weight].add(reader.dim)
    crossed = {weight for weight, found in dims.items() if len(found) > 1}
    return {name: found for name, found in readers.items() if crossed.isdisjoint(r.weight for r in found)}


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _weight_read_by(node: fx.Node, structure: Structure) -> tuple[str, int] | None:
    contracts = operator_of(node).contracts
    if contracts is None or contracts.weight is None or contracts.input_dim is None:
        return None
    weight = named_arguments(node)[contracts.weight]
    name = structure.capture.tensors.get(weight.name) if isinstance(weight, fx.Node) else None
    return None if name is None else (name, contracts.input_dim)


def _slices(
    structure: Structure, readers: Mapping[str, list[_Reader]], held: Iterable[str]
) -> dict[str, Slices]:
    positions: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    units: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for group in structure.groups:
        if group.name in held:
            continue
        for reader in readers.get(group.name, ()):
            positions[reader.weight, reader.dim].append(reader.positions.reshape(-1))
            flat = group.start + np.arange(group.units)
            units[reader.weight, reader.dim].append(np.repeat(flat, reader.positions.shape[1]))
    return {
        name: Slices(
            dim,
            torch.from_numpy(np.concatenate(found)),
            torch.from_numpy(np.concatenate(units[name, dim])),
        )
        for (name, dim), found in positions.items()
    }


def _held(model: nn.Module, structure: Structure, readers: Mapping[str, list[_Reader]]) -> frozenset[str]:
    """The groups for which zeros in weights are not the masked twin, tested on a verification copy."""
    candidates = [group for group in structure.groups if readers.get(group.name)]
    reference = VerificationCopy.of(model, structure)

    def agrees(groups: list[ChannelGroup]) -> bool:
        keep = torch.ones(structure.units, dtype=torch.bool)
        for group in groups:
            keep[group.start : group.slice.stop : 2] = False
        off = _slices(structure, readers, [g.name for g in structure.groups if g not in groups])
        twin = masked_twin(reference.structure, keep)
        state = detached_tensors(reference.model)
        for name, slices in off.items():
            positions = slices.of(~keep).to(state[name].device)
            state[name] = state[name].index_fill(slices.dim, positions, 0)
        deviation = reference.deviation(
            lambda inputs: reference.structure.capture.run(state, inputs),
            lambda inputs: reference.run(inputs, twin),
        )
        return max(deviation.values()) <= TOLERANCES[reference.dtype]

    def wrong(groups: list[ChannelGroup]) -> list[ChannelGroup]:
        if not groups or agrees(groups):
            return []
        if len(groups) == 1:
            return groups
        half = len(groups) // 2
        return (wrong(groups[:half]) + wrong(groups[half:])) or groups  # right alone, wrong together

    refused = {group.name for group in wrong(candidates)}
    fine = {group.name for group in candidates} - refused
    return frozenset(group.name for group in structure.groups if group.name not in fine)


def _reset_state(
    optimizer: torch.optim.Optimizer, weight: torch.Tensor, dim: int, positions: torch.Tensor
) -> None:
    for value in optimizer.state.get(weight, {}).values():
        if isinstance(value, torch.Tensor) and value.shape == weight.shape:
            value.index_fill_(dim, positions, 0)
