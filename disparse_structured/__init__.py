"""Structured pruning of multi-task networks that asks every task and proves every removal.

Two nouns to start with: a :class:`Task` says what a task is, a :class:`Plan` says what goes::

    pruned = prune(model, example_inputs, [Task("depth", "depth"), Task("labels", "labels")], data, macs=0.5)
    print(pruned.plan)
    print(pruned.report)

Without labels and without training, a few dozen inputs are enough: ``shrink(model, images, macs=0.6)``.
"""

from importlib.metadata import version

from disparse_structured.decision.arbiters import (
    AnyTask,
    Majority,
    Minimax,
    Priority,
    Quorum,
    Tolerance,
    Unanimous,
    WeightedMean,
)
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import make_plan as plan
from disparse_structured.decision.plan import Plan
from disparse_structured.decision.rankings import (
    GlobalRanking,
    IsomorphicRanking,
    LayerRanking,
    PerCostRanking,
)
from disparse_structured.errors import DisparseError
from disparse_structured.pipeline import Pruned, prune, shrink
from disparse_structured.pipeline.compensated import Compensated
from disparse_structured.refit import LeastSquares
from disparse_structured.relatedness import Relatedness, relate
from disparse_structured.scoring import measure
from disparse_structured.scoring.criteria import (
    SNIP,
    DiagonalHessian,
    Fisher,
    Learned,
    Magnitude,
    Random,
    Taylor,
)
from disparse_structured.structure import analyse
from disparse_structured.surgery.extraction import Extracted, extract
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.surgery.module import apply
from disparse_structured.surgery.saving import load, save
from disparse_structured.tasks import Task
from disparse_structured.verification.outputs import tasks_of
from disparse_structured.verification.twin import masked_twin

__version__ = version("disparse-structured")

__all__ = [
    "SNIP",
    "AnyTask",
    "Budget",
    "Compensated",
    "DiagonalHessian",
    "DisparseError",
    "Extracted",
    "Fisher",
    "GlobalRanking",
    "IsomorphicRanking",
    "LayerRanking",
    "Learned",
    "LeastSquares",
    "Magnitude",
    "Majority",
    "Minimax",
    "PerCostRanking",
    "Plan",
    "Priority",
    "Pruned",
    "Quorum",
    "Random",
    "Relatedness",
    "Task",
    "Taylor",
    "Tolerance",
    "Unanimous",
    "WeightedMean",
    "analyse",
    "apply",
    "apply_graph",
    "extract",
    "load",
    "masked_twin",
    "measure",
    "plan",
    "prune",
    "relate",
    "save",
    "shrink",
    "tasks_of",
]
