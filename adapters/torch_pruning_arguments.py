"""The arguments of Torch-Pruning's ``BasePruner``, and the budget that asks for the same.

What they mean there is that of Torch-Pruning 1.6.1.
"""

from __future__ import annotations

import glob
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning import ops

from disparse_structured.decision.budget import Budget
from disparse_structured.decision.budget.protection import matching
from disparse_structured.decision.contracts import CostModel, PrunableStructure
from disparse_structured.decision.deciding import smallest
from disparse_structured.decision.rankings import ranking_context
from disparse_structured.errors import BudgetError, OptionError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.structure import Attention, ChannelGroup, Structure
from disparse_structured.surgery._torch_pruning import StructureGraph

INSTEAD = {
    "ch_sparsity": "Call it pruning_ratio.",
    "ch_sparsity_dict": "Call it pruning_ratio_dict.",
    "customized_pruners": "Operators are read from the exported graph; add a rule for one that is unknown "
    "(docs/extending.md), and leave this out.",
    "forward_fn": "Give example_inputs as a tensor, a tuple of forward's arguments, or a dict by name.",
    "output_transform": "Name the outputs as tasks: structure=analyse(model, example_inputs, tasks).",
}
_INSTEAD_IN_PRUNE = {
    "example_inputs": "The structure has them.",
    "importance": "Pass it to prune: method=DiSparse(criterion=ImportanceCriterion(importance)).",
    "isomorphic": "Pass it to prune: method=DiSparse(ranking=IsomorphicRanking()).",
    "iterative_steps": "Pass it to prune: method=disparse_structured.pipeline.Iterative(rounds=...).",
    "iterative_pruning_ratio_scheduler": "A budget has no steps.",
    "reg": "A budget does not train. Use verified(pruner) for regularization.",
}

_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(tp.pruner.BasePruner.__init__).parameters.items()
}
_ROOTS = (ops.TORCH_CONV, ops.TORCH_LINEAR, ops.TORCH_LSTM)

_Layers = nn.Module | tuple[nn.Module, ...]


# What the arguments say.


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments that say what is pruned, and how much of it; as those of ``BasePruner``."""

    pruning_ratio: float = 0.5
    pruning_ratio_dict: Mapping[_Layers, float] | None = None
    max_pruning_ratio: float = 1.0
    ignored_layers: Sequence[nn.Module | nn.Parameter] | None = None
    round_to: int | None = None
    global_pruning: bool = False
    isomorphic: bool = False
    num_heads: Mapping[nn.Module, int] | None = None
    prune_num_heads: bool = False
    prune_head_dims: bool = True
    head_pruning_ratio: float = 0.0
    head_pruning_ratio_dict: Mapping[nn.Module, float] | None = None
    root_module_types: Sequence[type] = _ROOTS

    def __post_init__(self) -> None:
        for name in ("pruning_ratio", "max_pruning_ratio", "head_pruning_ratio"):
            _check_ratio(name, getattr(self, name))
        for name in ("pruning_ratio_dict", "head_pruning_ratio_dict"):
            for ratio in (getattr(self, name) or {}).values():
                _check_ratio(name, ratio)
        if self.round_to is not None and (type(self.round_to) is not int or self.round_to < 1):
            raise OptionError(f"round_to must be an integer >= 1 or None, got {self.round_to!r}.")
        if self.num_heads and self.prune_num_heads and self.prune_head_dims:
            raise OptionError(
                "prune_num_heads and prune_head_dims are both True. What is removed from attention is either "
                "a whole head or one dimension of every head: set one of them to False."
            )

    @property
    def attention(self) -> Attention:
        """What is removed from attention, as :func:`analyse` takes it."""
        return "head_dim" if self.num_heads and self.prune_head_dims else "heads"

    def ignored_modules(self, model: nn.Module) -> set[nn.Module]:
        """The modules that keep their output channels.

        Raises:
            OptionError: one is not part of ``model``.
        """
        parameters = {id(parameter) for parameter in model.parameters()}
        found: set[nn.Module] = set()
        for each in self.ignored_layers or ():
            if id(each) not in parameters:
                found.update(_part_of(model, "ignored_layers", each).modules())
        return found

    def ignored_parameters(self, model: nn.Module) -> set[str]:
        """The canonical names of the parameters that keep their shape."""
        given = {id(each) for each in self.ignored_layers or ()}
        return {name for name, tensor in named_tensors(model)[0].items() if id(tensor) in given}

    def check(self, structure: Structure) -> None:
        """Raise :class:`OptionError` unless ``structure`` was read for the same units of attention."""
        if (self.num_heads or self.prune_num_heads) and structure.attention != self.attention:
            raise OptionError(
                f"prune_num_heads={self.prune_num_heads} and prune_head_dims={self.prune_head_dims} remove "
                f"other parts of attention than the structure has. Read it with attention={self.attention!r}."
            )
        if structure.form != "module":
            raise OptionError('a pruner cuts a module. Read the structure with form="module".')


_EVERYTHING = "everything"
"""The name of the scope of ``global_pruning``."""


@dataclass(frozen=True, eq=False)
class Scope:
    """Groups that compete for one share of their units."""

    name: object
    ratio: float
    groups: list[ChannelGroup] = field(default_factory=list)

    def left(self, units: int) -> int:
        """How many of ``units`` are kept."""
        return int(round(units * (1 - self.ratio), 9))


def scopes(graph: StructureGraph, given: Arguments) -> list[Scope]:
    """The groups of ``graph`` that are pruned, divided as ``given`` says.

    Raises:
        OptionError: an argument names what is not part of the model.
    """
    structure = graph.structure
    ratios = _by_module(graph.model, "pruning_ratio_dict", given.pruning_ratio_dict)
    head_ratios = _by_module(graph.model, "head_pruning_ratio_dict", given.head_pruning_ratio_dict)
    ignored, ignored_parameters = given.ignored_modules(graph.model), given.ignored_parameters(graph.model)
    ones = torch.ones(structure.units, dtype=torch.float64)
    shapes = ranking_context(structure.groups, ones).isomorphic
    roots = tuple(given.root_module_types)
    found: dict[object, Scope] = {}
    for group, layers in zip(structure.groups, graph.producers, strict=True):
        is_head = group.kind == "head"
        wanted = given.prune_num_heads if is_head else any(isinstance(each, roots) for each in layers)
        parameters = {member.parameter for member in group.members}
        if not wanted or ignored.intersection(layers) or ignored_parameters & parameters:
            continue
        entries = [(head_ratios if is_head else ratios).get(layer) for layer in layers]
        entry = next((each for each in entries if each is not None), None)
        name: object
        if entry is not None:
            name, ratio = entry
        elif is_head:
            name, ratio = "heads", given.head_pruning_ratio
        elif given.isomorphic:
            name, ratio = ("shape", int(shapes[group.start])), given.pruning_ratio
        else:
            name, ratio = _EVERYTHING, given.pruning_ratio
        pooled = given.global_pruning or (given.isomorphic and entry is None and not is_head)
        key = name if pooled else group.name
        scope = Scope(name, min(ratio, given.max_pruning_ratio))
        found.setdefault(key, scope).groups.append(group)
    return list(found.values())


def _by_module(
    model: nn.Module, option: str, ratios: Mapping[Any, float] | None
) -> dict[nn.Module, tuple[object, float]]:
    """For each module that an entry of ``ratios`` names or contains, the entry's name and ratio."""
    found: dict[nn.Module, tuple[object, float]] = {}
    for number, (layers, ratio) in enumerate((ratios or {}).items()):
        for layer in layers if isinstance(layers, tuple) else (layers,):
            inside = _part_of(model, option, layer).modules()
            found.update(dict.fromkeys(inside, ((option, number), float(ratio))))
    return found


def _part_of(model: nn.Module, option: str, layer: Any) -> nn.Module:
    if not isinstance(layer, nn.Module) or all(layer is not each for each in model.modules()):
        what = f"the class {layer.__name__}" if isinstance(layer, type) else f"a {type(layer).__name__}"
        outside = " outside the model" if isinstance(layer, nn.Module | nn.Parameter) else ""
        raise OptionError(f"{option} holds {what}{outside}. Pass modules of the model that is pruned.")
    return layer


def _check_ratio(name: str, ratio: object) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        raise OptionError(f"{name} holds {ratio!r}. A ratio is the share to remove, a number in [0, 1].")


def taken(arguments: Mapping[str, Any], instead: Mapping[str, str]) -> Arguments:
    """What ``arguments`` of a pruner say; raise :class:`OptionError` for those that have no meaning here."""
    known = Arguments.__dataclass_fields__
    for name, value in arguments.items():
        if name not in _DEFAULTS and name not in instead:
            raise OptionError(f"Torch-Pruning's BasePruner has no argument {name!r}.")
        unset = name in _DEFAULTS and (value is None or value == _DEFAULTS[name])
        if name in instead and not unset:
            raise OptionError(f"{name} has no meaning here. {instead[name]}")
    taken = {name: value for name, value in arguments.items() if name in known}
    return Arguments(**taken)


# Their arguments as a budget.


@dataclass(frozen=True)
class Units:
    """The number of units: channels, or whole attention heads. This is what a pruning ratio counts."""

    @property
    def name(self) -> str:
        """``"units"``."""
        return "units"

    @property
    def unit(self) -> str:
        """``"units"``."""
        return "units"

    def on(self, structure: PrunableStructure, /) -> CostModel:
        """The number of units that are kept."""
        return _UnitsOf(float(structure.reach.shape[1]))

    def count(self, model: nn.Module, example_inputs: tuple[Any, ...], /) -> None:
        """A module alone does not say what its units are."""


@dataclass(frozen=True)
class _UnitsOf:
    dense: float

    def total(self, keep: Tensor, /) -> float:
        return float(keep.sum())

    def marginal(self, keep: Tensor, /) -> Tensor:
        return torch.ones(len(keep), dtype=torch.float64)


def budget_of(model: nn.Module, structure: Structure, **arguments: Any) -> Budget:
    """The budget that asks for what ``BasePruner(model, ..., **arguments)`` would remove.

    A ratio of Torch-Pruning is a share of the channels: of each layer, or with ``global_pruning`` of all
    layers together. ``ignored_layers`` keep their output channels; their inputs may shrink. Heads are pruned
    only by ``head_pruning_ratio``. Layers whose channels cannot change (outputs, say) need not be ignored.
    Kept counts are rounded up to a multiple of ``round_to``; Torch-Pruning rounds them down.

    >>> import torch, disparse_structured as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)).eval()
    >>> data = torch.randn(32, 4)
    >>> structure = ds.analyse(model, data[:2])
    >>> budget = budget_of(model, structure, pruning_ratio=0.25, ignored_layers=[model[2]])
    >>> ds.prune(model, data, structure=structure, budget=budget).model[0].out_features
    12

    Args:
        model: the model that is pruned.
        structure: what :func:`~disparse_structured.analyse` read from ``model``.
        arguments: ``pruning_ratio``, ``pruning_ratio_dict``, ``max_pruning_ratio``, ``ignored_layers``,
            ``round_to``, ``global_pruning``, ``root_module_types``, ``prune_num_heads``, ``prune_head_dims``,
            ``head_pruning_ratio`` and ``head_pruning_ratio_dict`` of ``BasePruner``. Those that describe the
            network (``num_heads``, ``in_channel_groups``, ``out_channel_groups``, ``unwrapped_parameters``)
            are accepted; the structure knows it already.

    Raises:
        OptionError: an argument has no meaning for a budget (says what to do instead), or is invalid.
        BudgetError: no channel of the model can be removed.
    """
    given = taken(arguments, INSTEAD | _INSTEAD_IN_PRUNE)
    given.check(structure)
    if not structure.groups:
        raise BudgetError(f"no channel of this {type(model).__name__} can be removed: everything is pinned.")
    shares = {group.name: (0.0, 0.0) for group in structure.groups}
    pool: list[ChannelGroup] = []
    removed = 0
    for scope in scopes(StructureGraph(model, structure), given):
        if len(scope.groups) == 1:
            shares[scope.groups[0].name] = (scope.ratio, scope.ratio)
        elif scope.name == _EVERYTHING:
            pool, units = scope.groups, sum(group.units for group in scope.groups)
            shares.update({group.name: (0.0, given.max_pruning_ratio) for group in pool})
            removed = units - scope.left(units)
        else:
            names = ", ".join(group.name for group in scope.groups)
            raise OptionError(
                f"with global_pruning, {names} share one ratio, which a budget cannot say. Give each layer "
                "an entry of its own, or use verified(pruner)."
            )
    limits = _by_pattern(structure, shares)

    def limited(units: float) -> Budget:
        return Budget(units, of=Units(), floor=0.0, round_to=given.round_to or 1, shares=limits)

    least = smallest(structure, limited(structure.units))
    wanted = least.clone()
    for group in pool:
        wanted[group.slice] = True
    return limited(max(int(wanted.sum()) - removed, int(least.sum())))


def _by_pattern(
    structure: Structure, shares: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """``shares``, by the groups' names, as patterns of which the last that matches a group is its own."""
    ((commonest, _),) = Counter(shares.values()).most_common(1)
    found, applied = {"*": commonest}, dict.fromkeys(shares, commonest)
    matched = {name: matching(structure.groups, glob.escape(name), "shares") for name in shares}
    for name in sorted(shares, key=lambda name: -len(matched[name])):
        if applied[name] != shares[name]:
            found[glob.escape(name)] = shares[name]
            applied.update({group.name: shares[name] for group in matched[name]})
    unclear = [name for name, share in applied.items() if share != shares[name]]
    if unclear:
        raise OptionError(f"no pattern of a budget names {unclear[0]} alone. Use verified(pruner).")
    return found
