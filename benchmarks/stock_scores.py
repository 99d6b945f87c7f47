"""Torch-Pruning's own importances as a criterion, on the groups that our surgery cuts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch_pruning as tp
from torch import Tensor

from disparse_structured.adapters.torch_pruning import ImportanceCriterion
from disparse_structured.scoring import Probe

Kind = Literal["magnitude", "taylor", "hessian"]


@dataclass(frozen=True)
class StockScores:
    """Scores of ``torch_pruning.importance.Group{Magnitude,Taylor,Hessian}Importance``, as they come."""

    kind: Kind

    def __call__(self, probe: Probe) -> Tensor:
        """float64 ``[tasks, units]``, equal rows; see :class:`ImportanceCriterion`."""
        if self.kind == "magnitude":
            return ImportanceCriterion(tp.importance.GroupMagnitudeImportance())(probe)
        if self.kind == "taylor":
            return ImportanceCriterion(tp.importance.GroupTaylorImportance(), "sum")(probe)
        return ImportanceCriterion(tp.importance.GroupHessianImportance(), "squares")(probe)
