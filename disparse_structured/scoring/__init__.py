"""Saliency: per task and unit, an estimate (>= 0) of how much that task's loss rises without the unit.

A *gate* multiplies what the consumers of a unit read, where the masked twin reads zeros. At 1 nothing
changes; at 0 the unit is removed. Every data-driven criterion here is built from the derivatives of a
task's loss with respect to the gates. A task without a loss is *label-free*: random projections of its
own output stand in for the loss (see :mod:`disparse_structured.scoring.objectives`).
"""

from disparse_structured.scoring.batch_losses import BatchLosses
from disparse_structured.scoring.criterion import Criterion, Saliency, score
from disparse_structured.scoring.derivatives import GateCurvature, GateGradients, WeightGradients
from disparse_structured.scoring.probe import Probe

__all__ = [
    "BatchLosses",
    "Criterion",
    "GateCurvature",
    "GateGradients",
    "Probe",
    "Saliency",
    "WeightGradients",
    "score",
]
