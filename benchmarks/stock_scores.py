"""Torch-Pruning's own importances as a criterion, on the groups that our surgery cuts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

from benchmarks.joint import parts
from benchmarks.weight_gradients import Gradients, WeightGradients, joint_loss
from disparse_structured.scoring import Probe
from disparse_structured.surgery._torch_pruning import StructureGraph

Kind = Literal["magnitude", "taylor", "hessian"]

_IMPORTANCES: dict[Kind, type[tp.importance.GroupMagnitudeImportance]] = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "taylor": tp.importance.GroupTaylorImportance,
    "hessian": tp.importance.GroupHessianImportance,
}


@dataclass(frozen=True)
class StockScores:
    """Unchanged scores of ``torch_pruning.importance.Group{Magnitude,Taylor,Hessian}Importance``.

    Taylor uses the gradient of the joint loss, summed over the batches; Hessian the mean over the samples of
    the squared gradient of each sample's joint loss. Torch-Pruning 1.6.1's own ``accumulate_grad`` is not
    used: it looks up names among parameters, and so keeps the last sample only. Groups that Torch-Pruning
    does not score, which it leaves whole, score as high as the best. Every task gets the same scores.
    """

    kind: Kind

    def __call__(self, probe: Probe) -> Tensor:
        """float64 ``[tasks, units]``, equal rows."""
        structure = probe.structure
        found = WeightGradients.of(probe)
        if self.kind != "magnitude":
            _fill(found.model, self._slopes(found))
        importance = _IMPORTANCES[self.kind]()
        scores = torch.full((structure.units,), torch.inf, dtype=torch.float64)
        graph = StructureGraph(found.model, structure)
        for group, units in zip(graph.get_all_groups(), structure.groups, strict=True):
            scored = importance(group)
            if scored is not None:
                # A group of zeros is divided by its mean, which is zero.
                scores[units.slice] = scored.detach().cpu().double().nan_to_num(nan=0.0)
        known = scores.isfinite()
        scores[~known] = scores[known].max() if known.any() else 1.0
        return scores.expand(len(structure.tasks), -1).clone()

    def _slopes(self, found: WeightGradients) -> Gradients:
        total: Gradients = {}
        loss = joint_loss(parts(found.probe.structure))
        for (gradients,) in found.of_losses(loss, per_sample=self.kind == "hessian"):
            for name, gradient in gradients.items():
                term = gradient.square() if self.kind == "hessian" else gradient
                total[name] = total[name] + term if name in total else term
        count = found.probe.samples if self.kind == "hessian" else 1
        return {name: value / count for name, value in total.items()}


def _fill(model: nn.Module, slopes: Gradients) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = slopes[name]
