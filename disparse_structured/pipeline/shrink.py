"""``shrink``: a model and a few dozen unlabelled inputs are enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from disparse_structured.data.batches import as_they_are, take
from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.arbiters import Arbiter, WeightedMean
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.costs import distinct
from disparse_structured.decision.deciding import DEFAULT_RANKING, decide
from disparse_structured.decision.plan import Plan
from disparse_structured.decision.rankings import Ranking
from disparse_structured.pipeline.calibrating import EXAMPLE_SAMPLES, SAMPLES, calibrate
from disparse_structured.pipeline.checks import check_callables, check_method, check_place, step
from disparse_structured.pipeline.compensated import Compensated
from disparse_structured.pipeline.pruned import Pruned, report_on
from disparse_structured.pipeline.surgeon import Surgeon
from disparse_structured.pipeline.tolerating import Try, checked_limits, within
from disparse_structured.refit import LeastSquares, RefitMethod
from disparse_structured.report.refit import RefitFacts
from disparse_structured.scoring import Criterion, Saliency, measure
from disparse_structured.structure import Attention, Form, Structure, analyse
from disparse_structured.surgery.module import Applied
from disparse_structured.tasks import Task, check_tasks
from disparse_structured.verification.outputs import tasks_of

DEFAULT_REFIT: RefitMethod = LeastSquares()
DEFAULT_COMPENSATED = Compensated()
DEFAULT_MEAN: Arbiter = WeightedMean()
"""Where each task's damage is measured, the mean loses less than unanimity; see docs/shrink.md."""

_Done = tuple[Plan, Saliency, Applied, RefitFacts]


def shrink(
    model: nn.Module,
    inputs: torch.Tensor | Iterable[Any] | Calibration,
    tasks: Sequence[Task] | None = None,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    budget: Budget | None = None,
    criterion: Criterion | Compensated = DEFAULT_COMPENSATED,
    arbiter: Arbiter = DEFAULT_MEAN,
    ranking: Ranking = DEFAULT_RANKING,
    refit: RefitMethod | None = DEFAULT_REFIT,
    tolerance: Mapping[str, float] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    verify: bool = True,
    inplace: bool = False,
    form: Form = "module",
    attention: Attention = "heads",
    progress: bool = False,
) -> Pruned:
    """Makes ``model`` physically smaller from a few dozen unlabelled inputs, without training.

    Every task's scores are the damage to its own output, the arbiter decides, the weights that stay are
    refit so that the outputs come close to the dense network's, Torch-Pruning removes.

    Args:
        model: any module that ``torch.export`` can capture. It is left as it is (unless ``inplace``).
        inputs: a tensor ``[N, ...]``, or batches as :func:`prune` takes them as ``data``; labels in them
            are not read. Iterated once, until there are ``samples`` examples, all of one shape.
        tasks: name and output of each task; losses are not used. By default every entry of what the model
            returns is a task, see :func:`~disparse_structured.verification.outputs.tasks_of`.
        criterion: how units are scored: by the damage that is left after compensation, measured along the
            way (:class:`~disparse_structured.pipeline.compensated.Compensated`),
            or by any criterion, at once.
        arbiter: how the tasks' scores become a decision; by their mean. :class:`~.arbitration.Unanimous` lets
            no unit go that one task votes to keep.
        refit: how the weights that stay make up for those that go; None leaves them as they are. See
            :mod:`disparse_structured.refit` for others than least squares.
        tolerance: by the name of a task, how far its output may be from the dense one's, relative in the
            Euclidean norm, as the report measures it after the refit. The budget is met with no task over
            its limit (see :class:`~disparse_structured.decision.arbiters.Tolerance`), in up to four tries.
            Instead of ``arbiter``.
        samples: read no more inputs than this, at least 2: half of them judge what the others taught.
        seed: of the votes, and of what a loader draws.

    The other arguments are those of :func:`prune`.

    Raises:
        BudgetError: the budget cannot be met, or not within ``tolerance``; says what is in the way.
        DisparseError: another of its subclasses, naming what was found and what to do. Whatever is raised,
            ``model`` is unchanged.
    """
    check_callables(arbiter=arbiter, ranking=ranking)
    if not isinstance(criterion, Compensated):
        check_callables(criterion=criterion)
    check_method(refit)
    check_place(form, inplace)
    budget = budget or Budget(macs=macs, parameters=parameters)
    calibration = calibrate(model, inputs, samples=samples, seed=seed)
    example = take(calibration.chunks[0], slice(EXAMPLE_SAMPLES))
    if tasks is None:
        tasks = tasks_of(model, example)
    else:
        tasks = [dataclasses.replace(task, loss=None) for task in check_tasks(tasks)]
    limits = (
        None
        if tolerance is None
        else checked_limits(tolerance, tasks, None if arbiter == DEFAULT_MEAN else arbiter, refit)
    )
    with step("reading the structure", progress):
        structure = analyse(model, example, tasks, form=form, attention=attention)
    surgeon = Surgeon(model, structure, refit, calibration, verify, progress)

    def decided(arbiter: Arbiter, budget: Budget) -> tuple[Plan, Saliency]:
        return _decide(model, structure, calibration, budget, criterion, arbiter, ranking, seed, progress)

    def attempt(arbiter: Arbiter, budget: Budget) -> Try[_Done]:
        plan, saliency = decided(arbiter, budget)
        operation, refitted = surgeon.operate(plan, inplace=False)
        assert refitted is not None
        predicted = (saliency.scores * ~plan.keep(structure)).sum(dim=1).sqrt().tolist()
        return Try(
            (plan, saliency, operation, refitted),
            dict(zip(structure.tasks, predicted, strict=True)),
            refitted.after,
        )

    refitted: RefitFacts | None
    if limits is None:
        plan, saliency = decided(arbiter, budget)
        operation, refitted = surgeon.operate(plan, inplace)
    else:
        plan, saliency, operation, refitted = within(limits, attempt, structure, budget).result
        if inplace:
            operation, refitted = surgeon.operate(plan, inplace)
    report = report_on(structure, saliency, operation, refitted, distinct([budget.of]))
    return Pruned(operation.model, operation.plan, report)


def _decide(
    model: nn.Module,
    structure: Structure,
    calibration: Calibration,
    budget: Budget,
    how: Criterion | Compensated,
    arbiter: Arbiter,
    ranking: Ranking,
    seed: int,
    progress: bool,
) -> tuple[Plan, Saliency]:
    """What goes, without labels, and the scores that say so."""
    weights = [task.weight for task in structure.task_objects]
    if isinstance(how, Compensated):
        found, saliency = how.decide(
            model, structure, calibration, budget,
            arbiter=arbiter, ranking=ranking, weights=weights, seed=seed, progress=progress,
        )  # fmt: skip
    else:
        saliency = measure(
            model, structure, how, calibration.chunks, inputs=as_they_are, seed=seed, progress=progress
        )
        found = decide(structure, saliency.scores, budget, ranking=ranking, arbiter=arbiter, weights=weights)
    plan = found.plan(structure, criterion=how, seed=seed)
    return plan, saliency
