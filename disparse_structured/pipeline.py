"""The whole composition: structure, saliency, votes, arbitration, budget, surgery, report."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from disparse_structured import saving
from disparse_structured.arbitration import Arbiter
from disparse_structured.batches import Inputs
from disparse_structured.budget import DEFAULT_ARBITER, DEFAULT_RANKING, Budget, make_plan
from disparse_structured.errors import BatchError, PlanError
from disparse_structured.plan import Plan
from disparse_structured.report.pruning import CostFacts, ProofFacts, PruningReport, RefusedGroup, TaskFacts
from disparse_structured.saliency import Criterion, Fisher, Saliency, measure
from disparse_structured.structure import Structure, analyse, count_macs, count_parameters
from disparse_structured.surgery import Operation, apply
from disparse_structured.tasks import Task, check_tasks
from disparse_structured.votes import Ranking


@dataclass(frozen=True)
class Pruned:
    """The smaller model, the plan that made it, and the report on both."""

    model: nn.Module
    plan: Plan
    report: PruningReport

    def save(self, folder: str | Path) -> None:
        """Writes ``plan.json``, ``weights.safetensors`` and ``report.json``; see :func:`load`."""
        saving.save(folder, self.model, self.plan, self.report)


def prune(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | torch.Tensor,
    tasks: Sequence[Task],
    data: Iterable[Any] | None = None,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    budget: Budget | None = None,
    criterion: Criterion | None = None,
    arbiter: Arbiter = DEFAULT_ARBITER,
    ranking: Ranking = DEFAULT_RANKING,
    inputs: Inputs | None = None,
    seed: int = 0,
    verify: bool = True,
    inplace: bool = False,
    progress: bool = False,
) -> Pruned:
    """Makes ``model`` physically smaller: every task votes, the arbiter decides, Torch-Pruning removes.

    Args:
        model: any module that ``torch.export`` can capture. It is left as it is (unless ``inplace``).
        example_inputs: the positional arguments of one forward pass, batch first.
        tasks: name, output and optionally loss of each task.
        data: batches for the saliency: any iterable of tensors, tuples or dicts. Without it the example
            inputs serve, which is enough for label-free tasks only.
        macs, parameters: the budget, a fraction in (0, 1) or an absolute number; or pass ``budget`` with
            its further options (floor, rounding, minimum width, protected layers).
        criterion: how units are scored; Fisher by default. Any callable of that signature.
        arbiter: how votes become a decision; unanimous by default. Any callable of that signature.
        ranking: how layers compete within one task's vote.
        inputs: ``inputs(batch) -> tuple of forward's arguments``, where the default cannot tell.
        verify: prove the result against the masked twin in float64 before handing it back.
        inplace: at the very end, make ``model`` itself the result.
        progress: show progress bars on a terminal.

    Raises:
        DisparseError: one of its subclasses, naming what was found and what to do; ``model`` is unchanged.
    """
    tasks = check_tasks(tasks)
    _check_callables(criterion=criterion, arbiter=arbiter, ranking=ranking)
    if data is not None and not isinstance(data, Iterable):
        raise BatchError(
            f"data is {type(data).__name__} {data!r}, which cannot be iterated. "
            "Pass a loader or a list of batches."
        )
    budget = budget or Budget(macs=macs, parameters=parameters)
    criterion = criterion or Fisher()
    with _step("reading the structure", progress):
        structure = analyse(model, example_inputs, tasks)
    if data is None:
        data, inputs = _example_as_data(structure.example_inputs, tasks), _as_they_are
    saliency = measure(model, structure, criterion, data, inputs=inputs, seed=seed, progress=progress)
    plan = make_plan(
        structure,
        saliency.scores,
        budget,
        ranking=ranking,
        arbiter=arbiter,
        weights=[task.weight for task in tasks],
        criterion=criterion,
        seed=seed,
    )
    with _step("cutting and proving" if verify else "cutting", progress):
        operation = apply(model, plan, structure, verify=verify, inplace=inplace)
        report = report_on(structure, saliency, operation)
    return Pruned(operation.model, operation.plan, report)


def _check_callables(**choices: object) -> None:
    for name, choice in choices.items():
        if choice is not None and not callable(choice):
            raise PlanError(
                f"{name}={choice!r} is no {name}: it cannot be called. Pass an object, such as Fisher(), "
                "Unanimous() or PerCostRanking(), or a callable of that signature."
            )


@contextlib.contextmanager
def _step(text: str, progress: bool) -> Iterator[None]:
    """A spinner on standard error while the body runs, where somebody is watching."""
    if progress and sys.stderr.isatty():
        with Console(stderr=True).status(text):
            yield
    else:
        yield


def report_on(structure: Structure, saliency: Saliency, operation: Operation) -> PruningReport:
    """The facts of one run; counts MACs and parameters on the pruned model itself."""
    plan, proof = operation.plan, operation.proof
    keep = plan.keep(structure)
    everything = torch.ones_like(keep)
    cost, provenance = structure.cost, plan.provenance
    counted = {
        "macs": count_macs(operation.model, structure.example_inputs),
        "parameters": count_parameters(operation.model),
    }
    costs = {
        name: CostFacts(total(everything), total(keep), counted[name])
        for name, total in (("macs", cost.macs), ("parameters", cost.parameters))
    }
    return PruningReport(
        model=type(operation.model).__name__,
        plan=plan.hash,
        macs=costs["macs"],
        parameters=costs["parameters"],
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
        proof=ProofFacts(True, proof.dtype, proof.tolerance, proof.deviation) if proof else ProofFacts(False),
        refused=tuple(RefusedGroup(each.group, each.reason) for each in operation.refused),
        frozen=structure.frozen,
        inputs=saving.describe_inputs(structure.example_inputs),
        versions=dict(provenance.versions),
    )


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


def _example_as_data(example_inputs: tuple[Any, ...], tasks: Sequence[Task]) -> list[Any]:
    labelled = [task.name for task in tasks if task.loss is not None]
    if labelled:
        raise BatchError(
            f"no data was given, but task {labelled[0]!r} has a loss, which needs labels. "
            "Pass data= (batches with labels), or leave the loss out to score the task label-free."
        )
    return [example_inputs]


def _as_they_are(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    return batch
