"""Torch-Pruning's pruners on our dependency graph: verified, and for networks that it cannot trace."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.pruner.algorithms.scheduler import linear_scheduler

from disparse_structured.adapters.torch_pruning_arguments import INSTEAD, scopes, taken
from disparse_structured.decision.budget.widths import Widths
from disparse_structured.graph.side_effects import undone
from disparse_structured.graph.supported import check_supported
from disparse_structured.structure import ChannelGroup, Structure, analyse, analyse_alike
from disparse_structured.surgery._torch_pruning import StructureGraph
from disparse_structured.surgery.module import cut
from disparse_structured.verification.verifier import Refusal, Verification, Verifier

P = TypeVar("P", bound=tp.pruner.BasePruner)


def verified(pruner: type[P], *, structure: Structure | None = None, verify: bool = True) -> type[P]:
    """``pruner``, a class of Torch-Pruning's pruners, on our dependency graph.

    The class is called as before, and has the same methods: ``step``, also interactively, ``regularize``,
    ``pruning_history``. Importances, regularization and schedules are its own. The groups are ours, so that
    networks that Torch-Pruning cannot trace are pruned too. Before a step cuts the model in place, a pruned
    copy is compared with the masked twin. Groups that ``forward`` cannot follow are left whole; the pruner
    lists them as ``refused``, beside ``verification``.

    A score belongs to a unit: a channel, a channel in all groups of a grouped layer, or a whole attention
    head. Ratios are shares of units. Kept counts are rounded up to a multiple of ``round_to`` and follow the
    network's count constraints. Heads are removed only by ``head_pruning_ratio``.

    >>> import torch, torch_pruning as tp
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)).eval()
    >>> importance = tp.importance.GroupMagnitudeImportance()
    >>> pruner = verified(tp.pruner.BasePruner)(model, torch.randn(2, 4), importance, pruning_ratio=0.25)
    >>> pruner.step()
    >>> model[0].out_features
    12

    Args:
        pruner: ``tp.pruner.BasePruner`` or a class derived from it.
        structure: what :func:`~disparse_structured.analyse` read from the model, for its choices; by default
            it is read from the arguments of the pruner. Before each step but the first, it is read again from
            what the last one left.
        verify: compare with the masked twin.

    Raises:
        OptionError: from the class, an argument has no meaning here (says what to do instead), or is invalid.
        VerificationError: from ``step``, the result differs from the twin, and no group is found at fault.
            The model is as it was.
    """
    bases = (_OnOurGraph,) if pruner is tp.pruner.BasePruner else (pruner, _OnOurGraph)
    members = {"__doc__": pruner.__doc__, "_given_structure": structure, "_verify": verify}
    return type(f"Verified{pruner.__name__}", bases, members)


_SIGNATURE = inspect.signature(tp.pruner.BasePruner.__init__)


class _OnOurGraph(tp.pruner.BasePruner):  # type: ignore[misc]  # Torch-Pruning is untyped
    """Replaces how ``BasePruner`` reads a network and chooses widths.

    Classes derived from ``BasePruner`` reach this ``__init__`` through ``super()``. It does not call that of
    ``BasePruner``, which traces the model.
    """

    _given_structure: ClassVar[Structure | None] = None
    _verify: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        arguments = dict(_SIGNATURE.bind(self, *args, **kwargs).arguments)
        given = taken(arguments, INSTEAD)
        self.model, inputs = arguments["model"], arguments["example_inputs"]
        self.importance = arguments["importance"]
        self.iterative_steps = arguments.get("iterative_steps", 1)
        self.current_step = 0
        self.iterative_pruning_ratio_scheduler = arguments.get(
            "iterative_pruning_ratio_scheduler", linear_scheduler
        )
        check_supported(self.model)
        structure = self._given_structure
        if structure is None:
            inputs = tuple(inputs) if isinstance(inputs, list) else inputs
            structure = analyse(self.model, inputs, attention=given.attention)
        given.check(structure)
        self.DG = StructureGraph(self.model, structure)
        self.verification: Verification | None = None
        self.refused: tuple[Refusal, ...] = ()
        self._given = given
        self._dense = {group.name: group.units for group in structure.groups}
        # What classes derived from BasePruner read:
        self.root_module_types = given.root_module_types
        self.ignored_layers = list(given.ignored_modules(self.model))
        self.in_channel_groups: dict[nn.Module, int] = {}
        self.out_channel_groups: dict[nn.Module, int] = {}
        scopes(self.DG, given)  # raises where the arguments do not fit the model

    def _prune(self) -> Iterator[Any]:
        if self.current_step > self.iterative_steps:
            warnings.warn(
                f"all {self.iterative_steps} steps are done, so nothing is pruned. Make a new pruner.",
                stacklevel=3,
            )
            return
        if self.DG.version:
            self._read_again()
        graph: StructureGraph = self.DG
        keep = self._chosen(graph)
        if self._verify and not keep.all():
            with undone(self.model):
                verifier = Verifier(self.model, graph.structure, cut)
                keep, self.verification, self.refused = verifier.resolve(keep)
        for group in graph.structure.groups:
            removed = np.flatnonzero(~keep[group.slice].numpy())
            if len(removed):
                yield graph.units_group(group.start + removed)

    def _read_again(self) -> None:
        """Read the structure of what earlier steps have left."""
        after = analyse_alike(self.model, self.DG.structure)
        history = self.DG.pruning_history()
        self.DG = StructureGraph(self.model, after)
        self.DG.pruning_history().extend(history)

    def _chosen(self, graph: StructureGraph) -> Tensor:
        """Bool ``[units]``: what is kept, chosen by importance within each scope."""
        structure = graph.structure
        importance = self._importance(graph)
        keep = torch.ones(structure.units, dtype=torch.bool)
        least = {group.name: group.units for group in structure.groups}
        for scope in scopes(graph, self._given):
            groups = [group for group in scope.groups if importance[group.slice].isfinite().any()]
            schedule = self.iterative_pruning_ratio_scheduler(scope.ratio, self.iterative_steps)
            dense = sum(self._dense[group.name] for group in groups)
            left = replace(scope, ratio=schedule[self.current_step]).left(dense)
            keep[_lowest(importance, groups, sum(group.units for group in groups) - left)] = False
            for group in groups:
                share = 1 - self._given.max_pruning_ratio
                least[group.name] = max(1, math.ceil(round(self._dense[group.name] * share, 9)))
        widths = Widths.of(
            structure.groups,
            structure.constraints,
            _Rounded(self._given.round_to or 1),
            structure.reach,
            importance.argsort(descending=True, stable=True),
        )
        minimum = np.minimum(np.array(list(least.values())), widths.dense)
        return replace(widths, minimum=minimum).settle(keep)

    def _importance(self, graph: StructureGraph) -> Tensor:
        """float64 ``[units]``: infinite for groups that the importance does not score."""
        found = torch.full((graph.structure.units,), torch.inf, dtype=torch.float64)
        for group in graph.structure.groups:
            with torch.no_grad():
                scores = self.estimate_importance(graph.units_group(np.arange(group.units) + group.start))
            if scores is not None:
                found[group.slice] = scores.detach().to("cpu", torch.float64)
        return found


def _lowest(importance: Tensor, groups: list[ChannelGroup], count: int) -> Tensor:
    """int64: the ``count`` least important units of ``groups``, less those of infinite importance."""
    units = torch.cat([torch.empty(0, dtype=torch.int64), *(torch.arange(g.units) + g.start for g in groups)])
    order = units[importance[units].argsort(stable=True)][: max(count, 0)]
    return order[importance[order].isfinite()]


@dataclass(frozen=True)
class _Rounded:
    """Width rules that only round."""

    round_to: int
    floor: float = 0.0
    min_width: int = 1
    shares: tuple[tuple[Any, float, float], ...] = ()
    uniform: bool = False
