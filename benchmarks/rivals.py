"""The decision rules of the nearest structured multi-task methods, and of sparse training, as criteria.

All of them score units of our channel groups, so that surgery, budget and fine-tuning are the same for all.
The filter of a unit is the slice of every weight that produces it, without the weights that read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from benchmarks.joint import parts
from benchmarks.weight_gradients import Gradients, WeightGradients, each_loss
from disparse_structured.scoring import Probe
from disparse_structured.structure import Structure


@dataclass(frozen=True, eq=False)
class FilterGradients:
    """What one batch says about every unit's filter ``w``, with the gradient ``g_k`` of the loss of task k.

    Args:
        products: float64 ``[tasks, tasks, units]``, ``<g_i, g_j>``.
        change: float64 ``[tasks, units]``, ``<w, g_k>``: what removing the filter does, to first order.
    """

    products: Tensor
    change: Tensor

    def cosines(self) -> tuple[Tensor, Tensor]:
        """The cosine of every pair of tasks ``[pairs, units]``, 0 where a gradient is; and which pairs exist.

        A pair exists, bool ``[pairs, units]``, where the gradients of both tasks are other than 0.
        """
        lengths = self.products.diagonal(dim1=0, dim2=1).T.clamp_min(0).sqrt()
        pairs = list(combinations(range(len(lengths)), 2))
        norms = torch.stack([lengths[i] * lengths[j] for i, j in pairs])
        dots = torch.stack([self.products[i, j] for i, j in pairs])
        exist = norms > 0
        return (dots / norms.masked_fill(~exist, 1.0)).clamp(-1, 1), exist


def filter_gradients(probe: Probe) -> Iterator[FilterGradients]:
    """One for each batch of the probe's data, for the tasks that :func:`benchmarks.joint.parts` names."""
    found = WeightGradients.of(probe)
    weights = {name: parameter.detach() for name, parameter in found.model.named_parameters()}
    filters = _Filters(found.model, probe.structure)
    for gradients in found.of_losses(each_loss(parts(probe.structure))):
        products = [[filters.dot(one, other) for other in gradients] for one in gradients]
        yield FilterGradients(
            torch.stack([torch.stack(row) for row in products]),
            torch.stack([filters.dot(weights, one) for one in gradients]),
        )


@dataclass(frozen=True)
class CosPrune:
    """The mean cosine of two tasks' gradients of a filter: where they conflict, it is removed first.

    ``score(f) = mean over batches and pairs of tasks of cos(g_i(f), g_j(f))``, lowest first, over all
    layers at once: Garg, Zhang, Guan, "Structured pruning for multi-task deep neural networks",
    arXiv 2304.06840, as its authors' code computes it (github.com/gargsid/MTLCosPrune,
    ``cosine_pruning_engine.py``). Here it is mapped from [-1, 1] to [0, 1].

    Deviations: the paper prunes the shared trunk only and leaves the heads, where there is no pair of
    tasks. Here a budget may need them, so units of one task are ranked by the method's own alternative,
    the squared first-order change of the losses' sum, and given the scores of the shared units at the
    same ranks: the heads lose the share that the trunk does.
    """

    def __call__(self, probe: Probe) -> Tensor:
        """float64 ``[tasks, units]``, equal rows."""
        total = torch.zeros(probe.structure.units, dtype=torch.float64)
        change = torch.zeros_like(total)
        shared = torch.zeros_like(total, dtype=torch.bool)
        count = 0
        for found in filter_gradients(probe):
            cosines, exist = found.cosines()
            total += cosines.sum(0) / exist.sum(0).clamp_min(1)
            shared |= exist.any(0)
            change += found.change.sum(0).square()
            count += 1
        score = ((1 + total / count) / 2).clamp(0, 1)
        score[~shared] = _at_the_same_ranks(change[~shared], score[shared])
        return score.expand(len(probe.structure.tasks), -1).clone()


@dataclass(frozen=True)
class ConflictTaylor:
    """The largest of the tasks' Taylor importances of a filter, less where their gradients conflict.

    After the abstract of Wang et al., "Compressing multi-task model for autonomous driving via pruning and
    knowledge distillation", arXiv 2511.05557: "Taylor-based channel importance with gradient conflict
    penalty to keep important channels while removing redundant and conflicting channels". Its equations
    were not at hand; assumed are ::

        T_k(f) = |<w, g_k>| averaged over batches, divided by its sum over all filters
        C(f)   = max(0, -cos(g_i, g_j)) averaged over batches and pairs of tasks
        score  = max over k of T_k(f)  *  (1 - penalty * C(f))

    Args:
        penalty: how much of its importance a filter loses in full conflict, in [0, 1].
    """

    penalty: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.penalty <= 1:
            raise ValueError(f"penalty={self.penalty!r}: a share from 0 to 1 is needed.")

    def __call__(self, probe: Probe) -> Tensor:
        """float64 ``[tasks, units]``, equal rows."""
        units = probe.structure.units
        taylor = torch.zeros(len(parts(probe.structure)), units, dtype=torch.float64)
        conflict = torch.zeros(units, dtype=torch.float64)
        count = 0
        for found in filter_gradients(probe):
            cosines, exist = found.cosines()
            taylor += found.change.abs()
            conflict += (-cosines).clamp_min(0).sum(0) / exist.sum(0).clamp_min(1)
            count += 1
        sums = taylor.sum(1, keepdim=True)
        importance = (taylor / sums.masked_fill(sums == 0, 1.0)).amax(0)
        score = importance * (1 - self.penalty * conflict / count)
        return score.expand(len(probe.structure.tasks), -1).clone()


class _Filters:
    """The positions in the weights that make up each unit's filter."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self._units = structure.units
        weights = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}
        self._slices = [
            (group.slice, member.parameter, member.dim, torch.from_numpy(member.index))
            for group in structure.groups
            for member in group.members
            if member.parameter in weights and member.dim == _output_dim(model, member.parameter)
        ]

    def dot(self, one: Gradients, other: Gradients) -> Tensor:
        """float64 ``[units]``: the inner product of two sets of weights over each unit's filter."""
        total = torch.zeros(self._units, dtype=torch.float64)
        for units, name, dim, index in self._slices:
            product = (one[name] * other[name]).movedim(dim, 0).flatten(1).sum(1).double().cpu()
            total[units] += product[index].sum(1)
        return total


def _output_dim(model: nn.Module, parameter: str) -> int:
    layer = model.get_submodule(parameter.rpartition(".")[0])
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


def _at_the_same_ranks(keys: Tensor, values: Tensor) -> Tensor:
    """For each of ``keys``, the one of ``values`` at the same relative rank."""
    if not len(keys) or not len(values):
        return keys
    share = keys.argsort(stable=True).argsort() / len(keys)
    ordered = values.sort().values
    found: Tensor = ordered[(share * len(values)).long()]
    return found
