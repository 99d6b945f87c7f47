"""What a run hands back: the smaller model, the plan, and the report on both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from disparse_structured.decision.costs import STANDARD, Cost
from disparse_structured.decision.plan import Plan
from disparse_structured.report.pruning import (
    CostFacts,
    GraphFacts,
    GraphOnly,
    PruningReport,
    RefusedGroup,
    TaskFacts,
    VerificationFacts,
)
from disparse_structured.report.refit import RefitFacts
from disparse_structured.scoring import Saliency
from disparse_structured.structure import Structure
from disparse_structured.surgery import saving
from disparse_structured.surgery.module import Applied
from disparse_structured.surgery.pruned_graph import PrunedGraph
from disparse_structured.tasks import Task


@dataclass(frozen=True)
class Pruned:
    """The smaller model, the plan that made it, and the report on both."""

    model: nn.Module
    plan: Plan
    report: PruningReport

    def save(self, folder: str | Path) -> None:
        """Writes ``plan.json``, ``weights.safetensors`` and ``report.json``; see :func:`load`."""
        saving.save(folder, self.model, self.plan, self.report)


def report_on(
    structure: Structure,
    saliency: Saliency,
    operation: Applied,
    refit: RefitFacts | None = None,
    costs: Iterable[Cost] = STANDARD,
) -> PruningReport:
    """The facts of one run; ``costs`` are counted on the pruned model itself, where they can be."""
    plan, verification = operation.plan, operation.verification
    keep = plan.keep(structure)
    provenance = plan.provenance
    refused = [refusal.group for refusal in operation.refused]
    return PruningReport(
        model=type(operation.model).__name__,
        plan=plan.hash,
        costs={cost.name: _cost_facts(cost, structure, keep, operation.model) for cost in costs},
        tasks=tuple(_task_facts(task, row, structure, plan, keep) for row, task in _rows(structure)),
        groups=len(structure.groups),
        groups_changed=len(plan.removals),
        units=structure.units,
        units_removed=int((~keep).sum()),
        criterion=saliency.criterion,
        arbiter=provenance.arbiter,
        ranking=provenance.ranking,
        ratio=provenance.ratio,
        batches=saliency.batches,
        samples=saliency.samples,
        refit=refit,
        verification=VerificationFacts(
            True, verification.dtype, verification.tolerance, verification.deviation
        )
        if verification
        else VerificationFacts(False),
        refused=tuple(RefusedGroup(each.group, each.reason) for each in operation.refused),
        pinned=structure.pinned,
        graph=_graph_facts(operation.model, structure),
        graph_only=GraphOnly.of(structure.graph_only, _held_by(refused, structure)),
        inputs=saving.describe_inputs(structure.example_inputs),
        versions=dict(provenance.versions),
    )


def _cost_facts(cost: Cost, structure: Structure, keep: torch.Tensor, pruned: nn.Module) -> CostFacts:
    model = cost.on(structure)
    counted = cost.count(pruned, structure.example_inputs)
    return CostFacts(cost.unit, model.dense, model.total(keep), counted)


def _graph_facts(model: nn.Module, structure: Structure) -> GraphFacts | None:
    if not isinstance(model, PrunedGraph):
        return None
    outputs = {task.name: None if callable(task.output) else task.output for task in structure.task_objects}
    return GraphFacts(model.examples, model.any_batch, outputs)


def _held_by(groups: Sequence[str], structure: Structure) -> float:
    """The share of the dense parameters that lies in slices of ``groups``."""
    keep = torch.ones(structure.units, dtype=torch.bool)
    dense = structure.cost.parameters.dense
    for name in groups:
        keep[structure.group(name).slice] = False
    return 1 - structure.cost.parameters.total(keep) / dense if dense else 0.0


def _rows(structure: Structure) -> Iterable[tuple[int, Task]]:
    return enumerate(structure.task_objects)


def _task_facts(task: Task, row: int, structure: Structure, plan: Plan, keep: torch.Tensor) -> TaskFacts:
    reached = structure.reach[row]
    units = int(reached.sum())
    asked = sum(len(dict(group.votes).get(task.name, ())) for group in plan.groups)
    return TaskFacts(
        name=task.name,
        labelled=task.loss is not None,
        units=units,
        shared=int((reached & (structure.reach.sum(dim=0) > 1)).sum()),
        asked=asked / units if units else 0.0,
        removed=int((reached & ~keep).sum()) / units if units else 0.0,
    )
