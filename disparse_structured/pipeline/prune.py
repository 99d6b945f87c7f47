"""``prune``: every task votes, by its loss or without labels, and the budget is met."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from disparse_structured.data.batches import Inputs, as_they_are
from disparse_structured.decision.arbiters import Arbiter
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.costs import distinct
from disparse_structured.decision.deciding import DEFAULT_ARBITER, DEFAULT_RANKING, make_plan
from disparse_structured.decision.rankings import Ranking
from disparse_structured.errors import BatchError
from disparse_structured.pipeline.calibrating import calibrate
from disparse_structured.pipeline.checks import check_callables, check_method, check_place, step
from disparse_structured.pipeline.pruned import Pruned, report_on
from disparse_structured.pipeline.surgeon import Surgeon
from disparse_structured.refit import RefitMethod
from disparse_structured.scoring import Criterion, measure
from disparse_structured.scoring.criteria import Fisher
from disparse_structured.structure import Attention, Form, analyse
from disparse_structured.tasks import Task, check_tasks


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
    refit: RefitMethod | None = None,
    seed: int = 0,
    verify: bool = True,
    inplace: bool = False,
    form: Form = "module",
    attention: Attention = "heads",
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
        refit: how the weights that stay make up for those that go, from the first 64 inputs of ``data``;
            not at all by default.
        verify: prove the result against the masked twin in float64 before handing it back.
        inplace: at the very end, make ``model`` itself the result.
        form: ``"graph"`` gives a :class:`~disparse_structured.surgery.pruned_graph.PrunedGraph` instead of a
            smaller ``model``: widths that ``forward`` hard-codes can shrink as well, and the result returns
            ``{task: tensor}``. It trains, exports to ONNX and can be saved and loaded.
        attention: what of attention is a unit: whole ``"heads"``, or one index of the head dimension in all
            heads, ``"head_dim"``. See :func:`~disparse_structured.structure.analyse`.
        progress: show progress bars on a terminal.

    Raises:
        DisparseError: one of its subclasses, naming what was found and what to do; ``model`` is unchanged.
    """
    tasks = check_tasks(tasks)
    check_callables(criterion=criterion, arbiter=arbiter, ranking=ranking)
    check_method(refit)
    check_place(form, inplace)
    if data is not None and not isinstance(data, Iterable):
        raise BatchError(
            f"data is {type(data).__name__} {data!r}, which cannot be iterated. "
            "Pass a loader or a list of batches."
        )
    budget = budget or Budget(macs=macs, parameters=parameters)
    criterion = criterion or Fisher()
    with step("reading the structure", progress):
        structure = analyse(model, example_inputs, tasks, form=form, attention=attention)
    if data is None:
        data, inputs = _example_as_data(structure.example_inputs, tasks), as_they_are
    calibration = None
    if refit is not None:
        data = list(data) if isinstance(data, Iterator) else data  # it is read twice
        calibration = calibrate(model, data, inputs=inputs, seed=seed)
    saliency = measure(model, structure, criterion, data, inputs=inputs, seed=seed, progress=progress)
    found = make_plan(
        structure,
        saliency.scores,
        budget,
        ranking=ranking,
        arbiter=arbiter,
        weights=[task.weight for task in tasks],
        criterion=criterion,
        seed=seed,
    )
    surgeon = Surgeon(model, structure, refit, calibration, verify, progress)
    operation, refitted = surgeon.operate(found, inplace)
    report = report_on(structure, saliency, operation, refitted, distinct([budget.of]))
    return Pruned(operation.model, operation.plan, report)


def _example_as_data(example_inputs: tuple[Any, ...], tasks: Sequence[Task]) -> list[Any]:
    labelled = [task.name for task in tasks if task.loss is not None]
    if labelled:
        raise BatchError(
            f"no data was given, but task {labelled[0]!r} has a loss, which needs labels. "
            "Pass data= (batches with labels), or leave the loss out to score the task label-free."
        )
    return [example_inputs]
