"""Scores for Torch-Pruning's pruners, and criteria made from Torch-Pruning's importances.

:class:`DisparseImportance` gives arbitrated scores to any pruner of Torch-Pruning.
:class:`ImportanceCriterion` makes a criterion from any of its importances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.pruner.importance import Importance

from disparse_structured.decision.arbiters import Arbiter, Ballot, Unanimous, arbitrate
from disparse_structured.decision.rankings import GlobalRanking, ranking_context
from disparse_structured.decision.votes import normalize, standing, standings, vote
from disparse_structured.errors import PlanError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.scoring import Probe
from disparse_structured.structure import Structure
from disparse_structured.surgery._torch_pruning import StructureGraph

_FINEST = 2.0**-14
"""The smallest difference between two ratios that is resolved."""


def removal_order(
    structure: Structure,
    scores: Tensor,
    arbiter: Arbiter = Unanimous(),  # noqa: B008 (immutable)
    weights: Iterable[float] | None = None,
) -> Tensor:
    """The order in which ``arbiter`` removes the units as the tasks have to give up more and more.

    The scores of each task are normalized and ranked over all layers, as votes are. A unit is removed at the
    first ratio at which the arbiter removes it: under :class:`Unanimous`, that of its most insistent task.
    Units removed at one ratio are ordered by the mean of the tasks' normalized scores.

    Args:
        scores: ``[tasks, units]``, finite and >= 0, such as ``score(...).scores``.
        weights: one for each task, >= 0, for arbiters that use them; ones by default.

    Returns:
        float64 ``[units]``: the share of the units that are removed before each; infinite for units that no
        ratio removes.

    Raises:
        PlanError: the scores do not fit the structure, or the arbiter does not return a decision.
    """
    reach, ranking = structure.reach, GlobalRanking()
    normalized = normalize(scores, reach, structure.tasks)
    free = torch.ones(structure.units, dtype=torch.bool)
    for group in structure.groups:
        free[group.slice] = group.name not in structure.unclaimed
    context = ranking_context(structure.groups, torch.ones(structure.units, dtype=torch.float64))
    own = reach & free
    places = standings(normalized, own, ranking, context)
    ones = [1.0] * len(structure.tasks)
    task_weights = torch.tensor(ones if weights is None else list(weights), dtype=torch.float64)

    def keep_at(ratio: float) -> Tensor:
        ballot = Ballot(
            votes=vote(places, own, ratio).keep,
            reach=reach,
            scores=normalized,
            ratio=ratio,
            rerank=lambda values, mask: standing(values, mask & free, ranking, context),
            weights=task_weights,
            damage=scores.detach().to("cpu", torch.float64).masked_fill(~reach, 0.0),
            unit_cost=context.unit_cost,
            tasks=structure.tasks,
        )
        return arbitrate(arbiter, ballot) | ~free

    first = _first_removed(keep_at)
    mean = normalized.sum(dim=0) / reach.sum(dim=0).clamp(min=1)
    order = torch.from_numpy(np.lexsort((mean.numpy(), first.numpy())))
    result = torch.empty(structure.units, dtype=torch.float64)
    result[order] = torch.arange(structure.units, dtype=torch.float64) / max(structure.units, 1)
    return result.masked_fill(first.isinf(), torch.inf)


def _first_removed(keep_at: Callable[[float], Tensor]) -> Tensor:
    """float64 ``[units]``: the ratio at which each unit is removed, by bisection; infinite if none does."""
    before, after = keep_at(0.0), keep_at(1.0)
    result = torch.full(before.shape, torch.inf, dtype=torch.float64)
    result[~before] = 0.0
    pending = [(0.0, 1.0, (before & ~after).nonzero()[:, 0])]
    while pending:
        low, high, units = pending.pop()
        if len(units) <= 1 or high - low < _FINEST:
            result[units] = high
            continue
        middle = (low + high) / 2
        kept = keep_at(middle)[units]
        pending += [(low, middle, units[~kept]), (middle, high, units[kept])]
    return result


class DisparseImportance(Importance):  # type: ignore[misc]
    """Arbitrated scores for Torch-Pruning: ``BasePruner(model, x, importance=DisparseImportance(...))``.

    A channel's importance is the place in :func:`removal_order` of the unit that is removed with it. If there
    are several such units, the one that is removed last counts. A channel with a pinned part is infinitely
    important. A group that has only such channels is not pruned.

    The pruner decides how layers compete (``global_pruning``, ``isomorphic``, ratios by layer) and how many
    channels are removed: there is no budget. A stock pruner groups and cuts in its own way, and nothing is
    verified; :func:`~disparse_structured.adapters.torch_pruning_pruners.verified` changes that.

    Scores belong to the dense network: use ``iterative_steps=1``, or make a new importance, from a new
    structure and new scores, for each pruner. Parameters outside modules, recurrent layers and the query
    groups of grouped-query attention are not covered.

    Args:
        model: the model that the pruner cuts.
        structure: the structure of ``model``, with ``form="module"``.
        scores: ``[tasks, units]``, such as ``score(model, structure, loader).scores``.
        arbiter: turns the tasks' votes into decisions.
        weights: one for each task, for arbiters that use them.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        scores: Tensor,
        *,
        arbiter: Arbiter = Unanimous(),  # noqa: B008 (immutable)
        weights: Iterable[float] | None = None,
    ) -> None:
        self.order = removal_order(structure, scores, arbiter, weights)
        self._names = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
        self._canonical = named_tensors(model)[1]
        self._units: dict[tuple[str, int], np.ndarray] = {}
        self._shapes = structure.capture.shapes()
        for group in structure.groups:
            for member in group.members:
                size = self._shapes[member.parameter][member.dim]
                units = self._units.setdefault((member.parameter, member.dim), np.full(size, -1))
                units[member.index] = group.start + np.arange(group.units)[:, None]

    def __call__(self, group: Any) -> Tensor | None:
        """float64 ``[channels]`` of the group's root; None where nothing of the group can be removed.

        Raises:
            PlanError: the model is another one, or was pruned since the scores were computed.
        """
        rows = {root: row for row, root in enumerate(group[0].root_idxs)}
        scores = np.full(len(rows), -np.inf)
        order = np.append(self.order.numpy(), np.inf)  # the last entry stands for unit -1: pinned
        for item in group:
            units = self._units_of(item.dep)
            if units is None or any(root not in rows for root in item.root_idxs):
                continue
            found = order[units[np.asarray(item.idxs, dtype=np.int64) % len(units)]]
            np.maximum.at(scores, [rows[root] for root in item.root_idxs], found)
        scores[np.isneginf(scores)] = np.inf
        return None if np.isinf(scores).all() else torch.from_numpy(scores)

    def _units_of(self, dependency: Any) -> np.ndarray | None:
        """The unit of each position that ``dependency`` cuts, -1 where it is pinned; None if unknown."""
        module = dependency.target.module
        place = _cut_of(module, dependency.handler)
        if place is None:
            return None
        if id(module) not in self._names:
            raise PlanError(
                f"a {type(module).__name__} of the pruner is not a module of the scored model. "
                "Give the pruner and DisparseImportance the same model."
            )
        name, dim = place
        tensor = self._canonical[".".join(filter(None, (self._names[id(module)], name)))]
        size = self._shapes[tensor][dim]
        if getattr(module, name).shape[dim] != size:
            raise PlanError(
                f"{tensor!r} has {getattr(module, name).shape[dim]} positions, and had {size} when it was "
                "scored. Use iterative_steps=1, or make a new DisparseImportance of the pruned model."
            )
        known = self._units.get((tensor, dim))
        return np.full(size, -1) if known is None else known


def _cut_of(module: Any, handler: Any) -> tuple[str, int] | None:
    """The tensor of ``module``, and the dimension, that show which channels ``handler`` cuts."""
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    if handler in (tp.prune_conv_in_channels, tp.prune_linear_in_channels):
        return "weight", 0 if transposed else 1
    if isinstance(module, nn.Embedding):
        return "weight", 1
    if isinstance(module, nn.modules.conv._ConvNd):
        return "weight", 1 if transposed else 0
    known = nn.Linear | nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.PReLU
    if isinstance(module, known):
        for name in ("weight", "running_mean"):
            if isinstance(getattr(module, name, None), Tensor):
                return name, 0
    return None


@dataclass(frozen=True, eq=False)
class ImportanceCriterion:
    """An importance of Torch-Pruning as a criterion, on this package's channel groups.

    Groups that it does not score, which Torch-Pruning does not prune, score as high as the best. Every task
    gets the same scores.

    Args:
        importance: such as ``tp.importance.GroupTaylorImportance()``.
        gradients: what it reads as the parameters' ``grad``, for the weighted sum of the tasks' losses.
            ``"sum"`` is the gradient, summed over the batches. ``"squares"`` is the mean over the samples of
            each sample's squared gradient (Torch-Pruning 1.6.1's own ``accumulate_grad`` keeps only the
            last sample). None if it reads no gradients.
    """

    importance: Callable[[Any], Tensor | None]
    gradients: Literal["sum", "squares"] | None = None

    def __call__(self, probe: Probe) -> Tensor:
        """float64 ``[tasks, units]``, equal rows."""
        structure = probe.structure
        model = deepcopy(probe.model).requires_grad_(True)
        model.zero_grad(set_to_none=True)
        if self.gradients is not None:
            found = self._gradients(probe)
            for name, parameter in model.named_parameters():
                parameter.grad = found[name]
        scores = torch.full((structure.units,), torch.inf, dtype=torch.float64)
        graph = StructureGraph(model, structure)
        for group, units in zip(graph.get_all_groups(), structure.groups, strict=True):
            scored = self.importance(group)
            if scored is not None:
                # A group of zeros is divided by its mean, which is zero.
                scores[units.slice] = scored.detach().cpu().double().nan_to_num(nan=0.0)
        known = scores.isfinite()
        scores[~known] = scores[known].max() if known.any() else 1.0
        return scores.expand(len(structure.tasks), -1).clone()

    def _gradients(self, probe: Probe) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        squares = self.gradients == "squares"
        for found in probe.weight_gradients(per_sample=squares, joint=True):
            (gradients,) = found.tasks
            for name, gradient in gradients.items():
                term = gradient.square() if squares else gradient
                total[name] = total[name] + term if name in total else term
        return {name: value / probe.samples for name, value in total.items()} if squares else total
