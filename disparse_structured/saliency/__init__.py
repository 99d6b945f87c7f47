"""Saliency: per task and unit, an estimate (>= 0) of how much that task's loss rises if the unit goes.

A *gate* multiplies what the consumers of a unit read. At 1 nothing changes, at 0 the unit is gone: the
place is the one where the masked twin reads zeros. Every data-driven criterion here is made of the
derivatives of a task's loss by the gates. A task without a loss is *label-free*: random projections of
its own output stand in for the loss (see :mod:`disparse_structured.saliency.objectives`).
"""

from disparse_structured.saliency.criterion import Criterion, Saliency, measure
from disparse_structured.saliency.fisher import Fisher
from disparse_structured.saliency.hessian import DiagonalHessian
from disparse_structured.saliency.learned import Learned
from disparse_structured.saliency.magnitude import Magnitude
from disparse_structured.saliency.probe import GateCurvature, GateGradients, Probe
from disparse_structured.saliency.random import Random
from disparse_structured.saliency.snip import SNIP
from disparse_structured.saliency.taylor import Taylor

__all__ = [
    "SNIP",
    "Criterion",
    "DiagonalHessian",
    "Fisher",
    "GateCurvature",
    "GateGradients",
    "Learned",
    "Magnitude",
    "Probe",
    "Random",
    "Saliency",
    "Taylor",
    "measure",
]
