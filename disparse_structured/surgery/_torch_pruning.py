"""Prunes with Torch-Pruning: its dependency graph, built from our structure.

This is the only file that imports ``torch_pruning``. Groups, dependencies and layer pruners are
Torch-Pruning's. Our own pruners are used where it has none (buffers, parameters of arbitrary modules,
depthwise convolutions with a channel multiplier, grouped transposed convolutions, instance norm with
running statistics) or is wrong (its layer-norm pruner loses the order of the kept indices in 1.6.1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch_pruning import _helpers
from torch_pruning.dependency import Dependency, Group, Node
from torch_pruning.pruner import function

from disparse_structured.errors import PlanError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.graph.packed_attention import MultiheadAttention, follow_weights
from disparse_structured.structure import ChannelGroup, Structure
from disparse_structured.structure.groups import positions_left
from disparse_structured.structure.weight_scales import WeightScale

Handler = Callable[..., Any]


class TensorPruner(function.BasePruningFunc):  # type: ignore[misc]
    """Cuts named tensors (parameters or buffers) of a module along one dimension each."""

    TARGET_MODULES = nn.Module

    def __init__(self, cuts: dict[str, int]) -> None:
        super().__init__()
        self.cuts = cuts

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        removed = set(idxs)
        kept = [i for i in range(self.get_out_channels(layer)) if i not in removed]
        for name, dim in self.cuts.items():
            tensor = getattr(layer, name)
            if tensor is None:
                continue
            if isinstance(tensor, nn.Parameter):
                setattr(layer, name, self._prune_parameter_and_grad(tensor, kept, dim))
            else:
                index = torch.tensor(kept, device=tensor.device)
                setattr(layer, name, tensor.index_select(dim, index))
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        name, dim = next((name, dim) for name, dim in self.cuts.items() if getattr(layer, name) is not None)
        return int(getattr(layer, name).shape[dim])

    get_in_channels = get_out_channels


_LAYER_NORM = TensorPruner({"weight": 0, "bias": 0})


class _LayerNormDependency(Dependency):  # type: ignore[misc]
    """Keeps the indices in order; named as Torch-Pruning's layer-norm pruner, for its importances."""

    def __call__(self, idxs: list[int]) -> nn.Module:
        layer: nn.LayerNorm = self.target.module
        _LAYER_NORM.prune_out_channels(layer, idxs)
        layer.normalized_shape = tuple(layer.weight.shape)
        return layer


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.modules.conv._ConvNd)
        and not module.transposed
        and module.groups == module.in_channels == module.out_channels
    )


def _handler(module: nn.Module, tensor: str, dim: int) -> Handler:
    """The pruning function that cuts ``tensor`` of ``module`` along ``dim``."""
    if isinstance(module, nn.modules.conv._ConvNd) and tensor in ("weight", "bias"):
        if _is_depthwise(module) and dim == 0:
            return tp.prune_depthwise_conv_out_channels  # type: ignore[no-any-return]
        multiplied = module.groups > 1 and module.groups == module.in_channels
        if not multiplied and not (module.transposed and module.groups > 1):
            produced = tensor == "bias" or dim == (1 if module.transposed else 0)
            return tp.prune_conv_out_channels if produced else tp.prune_conv_in_channels  # type: ignore[no-any-return]
    elif isinstance(module, nn.Linear) and tensor in ("weight", "bias"):
        return tp.prune_linear_out_channels if dim == 0 else tp.prune_linear_in_channels  # type: ignore[no-any-return]
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        return tp.prune_batchnorm_out_channels  # type: ignore[no-any-return]
    elif isinstance(module, nn.LayerNorm) and module.weight.ndim == 1:
        return tp.prune_layernorm_out_channels  # type: ignore[no-any-return]
    elif isinstance(module, nn.GroupNorm):
        return tp.prune_groupnorm_out_channels  # type: ignore[no-any-return]
    elif isinstance(module, nn.PReLU):
        return tp.prune_prelu_out_channels  # type: ignore[no-any-return]
    return TensorPruner({tensor: dim}).prune_out_channels


def _cut_by(handler: Handler, module: Any, dim: int) -> list[tuple[str, int]]:
    """The tensors, with dimensions, that Torch-Pruning's ``handler`` cuts at once.

    It applies only if all of them are the module's own and shrink alike, not if a weight is computed
    from other parameters, or a bias is used outside its layer.
    """
    if isinstance(getattr(handler, "__self__", None), TensorPruner):
        return []
    if handler in (tp.prune_conv_in_channels, tp.prune_linear_in_channels):
        return [("weight", dim)]
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
        tracked = ["running_mean", "running_var"] if getattr(module, "track_running_stats", False) else []
        return [(name, 0) for name in [*tracked, *(["weight", "bias"] if module.affine else [])]]
    transposed = isinstance(module, nn.modules.conv._ConvNd) and module.transposed
    biased = getattr(module, "bias", None) is not None
    return [("weight", 1 if transposed else 0), *([("bias", 0)] if biased else [])]


@dataclass(frozen=True, eq=False)
class _Cut:
    """One pruning function on one module.

    ``positions`` is int64 ``[units, multiplicity]`` in dense coordinates, out of ``size``.
    """

    key: tuple[int, str]
    node: Any
    handler: Handler
    positions: np.ndarray
    size: int


_SCORED = (
    tp.prune_conv_out_channels,
    tp.prune_conv_in_channels,
    tp.prune_linear_out_channels,
    tp.prune_linear_in_channels,
    tp.prune_batchnorm_out_channels,
    tp.prune_layernorm_out_channels,
)


def _is_scored(cut: _Cut) -> bool:
    """Whether Torch-Pruning's importances use this cut."""
    return cut.handler in _SCORED and cut.node.module.weight is not None


class StructureGroup(Group):  # type: ignore[misc]
    """A Torch-Pruning group made of our units, in the coordinates of the current model."""

    def __init__(self, graph: StructureGraph, units: np.ndarray) -> None:
        super().__init__()
        self._DG = graph
        self._units = units
        self._version = graph.version

    def prune(self, idxs: Sequence[int] | None = None, record_history: bool = True) -> None:
        """Remove the group's units everywhere, or those that ``idxs`` of its root belong to.

        Raises:
            PlanError: the model was pruned since the group was made, so its indices are outdated.
        """
        if self._version != self._DG.version:
            raise PlanError(
                "the model was pruned after this group was made. Ask the graph for the group again."
            )
        if idxs is None:
            self._DG._execute(self, self._units, record_history)
        else:
            root = self[0].dep
            some = self._DG.get_pruning_group(root.target.module, root.handler, idxs)
            some.prune(record_history=record_history)


class StructureGraph(tp.DependencyGraph):  # type: ignore[misc]
    """Torch-Pruning's dependency graph over our channel groups; it prunes ``model``.

    ``get_all_groups``, ``get_pruning_group``, ``check_pruning_group``, ``Group.prune()`` and the
    ``Importance`` classes work as on a traced graph. Indices are those of the current model.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        super().__init__()
        self.model = model
        self.structure = structure
        self.verbose = False
        self.version = 0
        self.unwrapped_parameters: list[Any] = []
        self.ignored_params: list[Any] = []
        self._param_to_name: dict[Any, str] = {}
        self._module2name = {module: name for name, module in model.named_modules()}
        self.module2node: dict[nn.Module, Any] = {}
        self._kept = np.ones(structure.units, dtype=bool)
        self._owners = _owners(model)
        self._cuts = [self._cuts_of(group) for group in structure.groups]
        self._alive: dict[tuple[int, str], np.ndarray] = {
            cut.key: np.ones(cut.size, dtype=bool) for cuts in self._cuts for cut in cuts
        }
        handlers = {cut.handler for cuts in self._cuts for cut in cuts}
        self._out_channel_pruning_fn |= {
            handler for handler in handlers if handler.__name__ == "prune_out_channels"
        }
        self._in_channel_pruning_fn |= {
            handler for handler in handlers if handler.__name__ == "prune_in_channels"
        }

    # Torch-Pruning's interface.

    def get_all_groups(
        self,
        ignored_layers: Sequence[nn.Module] = (),
        root_module_types: Sequence[type] = (nn.Module,),
    ) -> Iterator[StructureGroup]:
        """Yield one group for each channel group with units left, with all of them.

        As on a traced graph, only layers that produce the group's channels count: if one of them is
        ignored, or none is of ``root_module_types``, the group is left out.
        """
        ignored = set(ignored_layers)
        for group, layers in zip(self.structure.groups, self.producers, strict=True):
            units = np.flatnonzero(self._kept[group.slice]) + group.start
            wanted = any(isinstance(layer, tuple(root_module_types)) for layer in layers)
            if len(units) and wanted and not ignored.intersection(layers):
                yield self.units_group(units)

    def get_pruning_group(
        self, module: nn.Module, pruning_fn: Handler, idxs: Sequence[int]
    ) -> StructureGroup:
        """Find the units that own positions ``idxs`` of what ``pruning_fn`` cuts in ``module``."""
        if module not in self.module2node:
            raise ValueError(
                f"module {self._module2name.get(module, module)!r} owns nothing that can be pruned."
            )
        wanted = {int(idxs)} if isinstance(idxs, int) else {int(i) for i in idxs}
        if _is_depthwise(module):
            pruning_fn = tp.prune_depthwise_conv_out_channels
        units: list[int] = []
        owned: set[int] = set()
        for group, cuts in zip(self.structure.groups, self._cuts, strict=True):
            for cut in cuts:
                if cut.node.module is not module or cut.handler != pruning_fn:
                    continue
                current = self._current(cut)
                owned.update(current[current >= 0].tolist())
                hit = np.isin(current, list(wanted)).any(axis=1)
                units.extend((np.flatnonzero(hit) + group.start).tolist())
        missing = sorted(wanted - owned)
        if missing:
            raise ValueError(
                f"positions {missing[:8]} of {self._module2name[module]!r} cannot be pruned: "
                "they are pinned or out of range."
            )
        return self.units_group(np.unique(units))

    def check_pruning_group(self, group: StructureGroup) -> bool:
        """Return whether every channel group keeps at least one unit."""
        left = self._kept.copy()
        left[group._units] = False
        return all(left[each.slice].any() for each in self.structure.groups)

    @functools.cached_property
    def producers(self) -> tuple[tuple[nn.Module, ...], ...]:
        """For each channel group, the modules whose output channels shrink with it."""
        return tuple(
            tuple(cut.node.module for cut in cuts if self.is_out_channel_pruning_fn(cut.handler))
            for cuts in self._cuts
        )

    # What surgery uses.

    def units_group(self, units: np.ndarray) -> StructureGroup:
        """Build the group that removes ``units`` (flat, dense numbering, ascending).

        ``root_idxs`` number the units of the group from 0. The importances size their result by the first
        entry they know, so that entry has one index per unit: a wider slice is split into parts.
        """
        result = StructureGroup(self, units)
        entries: dict[tuple[int, str], tuple[_Cut, list[np.ndarray], list[np.ndarray]]] = {}
        touched = self._touched(units)
        for group, cuts in touched:
            local = units[(units >= group.start) & (units < group.start + group.units)] - group.start
            numbers = np.searchsorted(units, local + group.start)
            for cut in cuts:
                positions = self._current(cut)[local]
                _, found, numbered = entries.setdefault(cut.key, (cut, [], []))
                found.append(positions)
                numbered.append(np.repeat(numbers, positions.shape[1]))
        ordered = sorted(
            entries.values(), key=lambda entry: (not _is_scored(entry[0]), sum(map(np.size, entry[1])))
        )
        for i, (cut, found, numbered) in enumerate(ordered):
            if i == 0 and len(touched) == 1:
                for column in found[0].T:
                    self._add(result, cut, column, np.arange(len(column)))
            else:
                index = np.concatenate([positions.reshape(-1) for positions in found])
                self._add(result, cut, index, np.concatenate(numbered))
        return result

    def _add(self, group: StructureGroup, cut: _Cut, index: np.ndarray, numbers: np.ndarray) -> None:
        kind = _LayerNormDependency if cut.handler == tp.prune_layernorm_out_channels else Dependency
        dependency = kind(cut.handler, cut.handler, source=cut.node, target=cut.node)
        item = _helpers.GroupItem(dependency, index.tolist())
        item.root_idxs = numbers.tolist()
        group.add_dep(dependency, item.idxs)
        group[len(group) - 1] = item

    def _execute(self, group: StructureGroup, units: np.ndarray, record_history: bool) -> None:
        before, widths = _Traits.of(self.model), self.structure.cost.widths(self._kept)
        scales = self._weight_scales(units)
        whole: dict[tuple[int, Handler], tuple[Any, list[int]]] = {}
        for dependency, idxs in group:
            key = (id(dependency.target.module), dependency.handler)
            whole.setdefault(key, (dependency, []))[1].extend(idxs)
        for dependency, idxs in whole.values():
            dependency(sorted(idxs))
        if record_history and len(group):
            root = group[0]
            self._pruning_history.append(
                [
                    self._module2name[root.dep.target.module],
                    self.is_out_channel_pruning_fn(root.dep.handler),
                    list(root.idxs),
                ]
            )
        self._kept[units] = False
        for each, cuts in self._touched(units):
            removed = ~self._kept[each.slice]
            for cut in cuts:
                self._alive[cut.key][cut.positions[removed].reshape(-1)] = False
        self.version += 1
        self._follow_numbers()
        before.restore(self.model)
        self._keep_scales(widths)
        tensors, _ = named_tensors(self.model)
        for weight, scale in scales:
            weight.restore(tensors, scale)

    # Building.

    def _cuts_of(self, group: ChannelGroup) -> list[_Cut]:
        cuts: dict[tuple[int, str], _Cut] = {}
        owned = {
            (owner, tensor, member.dim): member.index
            for member in group.members
            for owner, tensor in self._owners[member.parameter]
        }
        for member in (*group.members, *group.attributes):
            owner: Any
            for owner, tensor in self._holders(member.parameter):
                handler = _handler(owner, tensor, member.dim)
                reached = [owned.get((owner, *each)) for each in _cut_by(handler, owner, member.dim)]
                if any(index is None or not np.array_equal(index, member.index) for index in reached):
                    handler = TensorPruner({tensor: member.dim}).prune_out_channels
                size = getattr(owner, tensor).shape[member.dim]
                positions = member.index
                if handler == tp.prune_conv_in_channels and owner.groups > 1 and not owner.transposed:
                    offsets = np.arange(owner.groups) * size
                    positions = (positions[:, :, None] + offsets).reshape(len(positions), -1)
                    size = owner.in_channels
                name = handler.__name__
                if isinstance(getattr(handler, "__self__", None), TensorPruner):
                    name = f"{tensor}:{member.dim}"
                key = (id(owner), name)
                if key not in cuts:
                    node = self.module2node.setdefault(
                        owner, Node(owner, None, self._module2name[owner] or type(owner).__name__)
                    )
                    cuts[key] = _Cut(key, node, handler, positions, size)
        return list(cuts.values())

    def _holders(self, name: str) -> list[tuple[nn.Module, str]]:
        """The modules that hold a tensor, and its names in them."""
        if name in self._owners:
            return self._owners[name]
        path, _, attribute = name.rpartition(".")
        return [(self.model.get_submodule(path), attribute)]

    def _touched(self, units: np.ndarray) -> list[tuple[ChannelGroup, list[_Cut]]]:
        """The groups that ``units`` belong to, with their cuts."""
        starts = [group.start for group in self.structure.groups]
        owners = np.unique(np.searchsorted(starts, units, side="right") - 1)
        return [(self.structure.groups[i], self._cuts[i]) for i in owners.tolist()]

    def _current(self, cut: _Cut) -> np.ndarray:
        """The cut's positions in the current model; -1 where they are removed."""
        alive = self._alive[cut.key]
        current = np.where(alive, np.cumsum(alive) - 1, -1)
        return np.asarray(current[cut.positions])

    def _follow_numbers(self) -> None:
        """Updates the numbers that the modules' own ``forward`` computes with."""
        widths = self.structure.cost.widths(self._kept)
        for update in self.structure.attributes:
            update.attribute.write(self.model, round(float(widths[update.row])))
        for node in self.module2node.values():
            _describe(node.module)

    def _weight_scales(self, units: np.ndarray) -> list[tuple[WeightScale, torch.Tensor]]:
        """The current values of the scales that removing ``units`` would change."""
        shrinking = {
            (member.parameter, member.dim) for group, _ in self._touched(units) for member in group.members
        }
        tensors, _ = named_tensors(self.model)
        return [
            (each, each.measure(tensors))
            for each in self.structure.weight_scales
            if any(name == each.weight and dim != each.dim for name, dim in shrinking)
        ]

    def _keep_scales(self, before: np.ndarray) -> None:
        """Compensates for attention scales that a cut changed; ``before`` are the widths before it."""
        if not self.structure.scales:
            return
        after = self.structure.cost.widths(self._kept)
        left = positions_left(self.structure.groups, self.structure.capture.shapes(), self._kept)
        tensors, _ = named_tensors(self.model)
        for scale in self.structure.scales:
            factor = math.sqrt(after[scale.row] / before[scale.row])
            for name, rows in scale.query.items() if factor != 1 else ():
                tensor = tensors[name].detach()
                index = torch.from_numpy(np.flatnonzero(np.isin(left[name][0], rows))).to(tensor.device)
                tensors[name].data = tensor.index_copy(0, index, factor * tensor.index_select(0, index))


_COMPUTES_WEIGHT = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")


def _describe(module: nn.Module) -> None:
    """Sets a layer's channel counts from its weight."""
    for hook in module._forward_pre_hooks.values():
        if type(hook).__module__ in _COMPUTES_WEIGHT:
            hook(module, ())  # otherwise the computed weight, a plain attribute, would keep the dense shape
    follow_weights(module)
    if isinstance(module, MultiheadAttention):
        weight = module.q_proj_weight if module.in_proj_weight is None else module.in_proj_weight
        module.embed_dim = weight.shape[1]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        first, second = module.weight.shape[:2]
        if module.transposed:
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.in_channels, module.out_channels = second * module.groups, first


def _owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """For each tensor's canonical name, the modules that hold it and their names for it."""
    _, canonical = named_tensors(model)
    owners: dict[str, list[tuple[nn.Module, str]]] = {}
    for name, owner in canonical.items():
        path, _, tensor = name.rpartition(".")
        module = model.get_submodule(path)
        if all(module is not known or tensor != other for known, other in owners.setdefault(owner, [])):
            owners[owner].append((module, tensor))
    return owners


@dataclass(frozen=True)
class _Traits:
    """What pruning loses but a user expects to keep: requires_grad, memory format, ties."""

    requires_grad: dict[str, bool]
    channels_last: frozenset[str]
    ties: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> _Traits:
        tensors, canonical = named_tensors(model)
        return cls(
            requires_grad={name: tensor.requires_grad for name, tensor in tensors.items()},
            channels_last=frozenset(
                name
                for name, tensor in tensors.items()
                if tensor.ndim == 4
                and tensor.is_contiguous(memory_format=torch.channels_last)
                and not tensor.is_contiguous()
            ),
            ties={name: owner for name, owner in canonical.items() if name != owner},
        )

    def restore(self, model: nn.Module) -> None:
        for name, owner in self.ties.items():
            path, _, alias = name.rpartition(".")
            source_path, _, source = owner.rpartition(".")
            setattr(model.get_submodule(path), alias, getattr(model.get_submodule(source_path), source))
        for name, tensor in named_tensors(model)[0].items():
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(self.requires_grad[name])
            if name in self.channels_last:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
