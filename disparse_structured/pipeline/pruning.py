"""``prune``: the whole composition on one screen."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from disparse_structured.checks import check_seed
from disparse_structured.data.batches import ToInputs
from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.budget import Budget
from disparse_structured.graph.batching import with_batch
from disparse_structured.graph.side_effects import leaves_no_trace
from disparse_structured.graph.supported import check_supported
from disparse_structured.latency import Latency, OnnxRuntime, Runtime
from disparse_structured.naming import rule_name
from disparse_structured.pipeline.compensated import Compensated
from disparse_structured.pipeline.estimate import estimated
from disparse_structured.pipeline.inputs import Data
from disparse_structured.pipeline.latency import asked_latency, in_time, latency_budget
from disparse_structured.pipeline.method import Method, Problem
from disparse_structured.pipeline.options import (
    check_comparable,
    check_given_structure,
    check_method,
    check_recover,
    check_refit,
    check_runtime,
    the_budget,
)
from disparse_structured.pipeline.recovering import recovered
from disparse_structured.pipeline.refitting import Execution, Outcome
from disparse_structured.pipeline.result import PruningResult
from disparse_structured.pipeline.tolerance import check_limits, within_limits
from disparse_structured.pipeline.unfit import warn_of_unfit
from disparse_structured.progress import announce, step
from disparse_structured.recovery import Recover, Recovery, Subject
from disparse_structured.recovery.examples import check_shapes
from disparse_structured.refit import LeastSquares, RefitMethod
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.scoring import Saliency
from disparse_structured.structure import Structure, UnusedModule, analyse
from disparse_structured.surgery.unused import without_unused
from disparse_structured.tasks import Task

_COMPENSATED: Method = Compensated()
_LEAST_SQUARES: RefitMethod = LeastSquares()


@leaves_no_trace
def prune(
    model: nn.Module,
    data: torch.Tensor | Iterable[Any] | Calibration,
    tasks: Sequence[Task | str] | None = None,
    *,
    macs: float | str | None = None,
    parameters: float | str | None = None,
    latency: float | str | None = None,
    budget: Budget | None = None,
    runtime: Runtime | None = None,
    method: Method = _COMPENSATED,
    refit: RefitMethod | None = _LEAST_SQUARES,
    recover: Recovery | None = None,
    tolerance: Mapping[str, float] | None = None,
    to_inputs: ToInputs | None = None,
    structure: Structure | None = None,
    batched: Sequence[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    verify: bool = True,
    drop_unused: bool = False,
    progress: bool = False,
) -> PruningResult:
    """Makes ``model`` physically smaller: each task votes, an arbiter decides, Torch-Pruning removes.

    A few dozen unlabeled inputs are enough: by default every entry of the model's output is a task, units are
    chosen by the damage that is left after compensation, and the remaining weights are refit. Nothing is
    trained without ``recover``. ``model`` is left as it is. No other thread may run PyTorch modules
    meanwhile; other calls of this package wait for this one.

    >>> import torch, disparse_structured as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)).eval()
    >>> result = ds.prune(model, torch.randn(32, 4), macs=0.5)
    >>> result.model[0].out_features
    8

    Args:
        model: any module that ``torch.export`` can capture.
        data: a tensor ``[N, ...]``, one batch (a dict or a tuple), or batches, such as a loader. Labels in it
            are read only where ``method`` uses them.
        tasks: the tasks, or their names: a name stands for the entry of the output that is called so. By
            default every entry of the output is a task.
        macs, parameters: what the result may cost: a fraction in (0, 1) of the dense cost, such as 0.5 or
            ``"50%"``, or a number.
        latency: instead, how long the result may take in ``runtime`` on this machine: a share in (0, 1) of
            the dense network's time, or milliseconds, such as ``"12 ms"``. It is exported and measured, and
            decided again, until the time is met within 5 %, in up to four exports.
        budget: instead of them, a :class:`~disparse_structured.Budget` with its further options (floor,
            rounding, minimum width, protected layers).
        runtime: what runs the network where ``latency`` is given,
            :class:`~disparse_structured.latency.OnnxRuntime` by default.
        method: decides which units are removed: :class:`~disparse_structured.Compensated` by default,
            :class:`~disparse_structured.DiSparse` for one-shot votes, which use the tasks' losses.
        refit: how the remaining weights compensate for what was removed, see
            :mod:`disparse_structured.refit`; None leaves them unchanged.
        recover: trains the result without labels after the refit, see
            :class:`~disparse_structured.recovery.Distillation`; by default nothing is trained.
        tolerance: by the name of a task, how far its output may move, relative in the Euclidean norm, as the
            report measures it after the refit; where an output has columns of several sizes, also how far
            those of each size may move. The budget is met with no task over its limit, in up to four tries.
            Replaces the arbiter of ``method``.
        to_inputs: ``to_inputs(batch) -> tuple of forward's arguments``, where the default cannot tell.
        structure: what :func:`~disparse_structured.analyse` read from ``model``, for its choices: whether the
            module or its exported graph is pruned, what is removed from attention. It has the tasks.
        batched: the names of the arguments of ``forward`` whose first dimension is the batch. By default this
            is found by running the model with one more example. Not with ``structure``, which knows it.
        samples: read at most this many examples. By default a refit and :class:`Compensated` read 64, of
            small networks up to 256, and :class:`DiSparse` scores on all of ``data``.
        seed: random seed of scores, refit, and whatever a loader draws.
        verify: compare the result with the masked twin in float64 before handing it back.
        drop_unused: first leave out modules that never run, in eval or train mode. The budget is then a
            fraction of what remains. The report lists them.
        progress: show progress on standard error (bars on a terminal, occasional lines elsewhere), and an
            estimate of time and memory before a long run.

    Returns:
        The smaller model with its plan and report; it can be saved and exported.

    Raises:
        OptionError: an option is of the wrong kind, or contradicts another one.
        BudgetError: the budget cannot be met, or not within ``tolerance``; says what is in the way.
        ExportError: with ``latency``, the model cannot be exported.
        DisparseError: another of its subclasses, naming what was found and what to do. Whatever is raised,
            ``model`` is unchanged.

    Warns:
        DisparseWarning: ``recover`` failed once the network was pruned. The result is that of the refit. Or a
            module that never ran reads a width that was pruned.
    """
    check_supported(model)
    budget = the_budget(model, macs, parameters, latency, budget)
    if latency is not None:
        asked_latency(latency)
    check_runtime(runtime, timed=latency is not None)
    check_method(method)
    check_refit(refit)
    check_given_structure(structure, tasks, batched)
    check_seed(seed)
    check_recover(recover)
    marked = functools.partial(with_batch, model, batched=batched) if structure is None else structure.marked
    fits = refit is not None or _fits(method)
    given = Data.of(model, data, to_inputs, samples=samples, seed=seed, fits=fits, marked=marked)
    if structure is None:
        with step("reading the structure", progress):
            structure = analyse(model, given.example_inputs, tasks)
    check_comparable(structure)
    if fits and samples is None and not isinstance(data, Calibration):
        given = given.enlarged(model, structure, seed)
    dropped: tuple[UnusedModule, ...] = ()
    if drop_unused and structure.unused:
        with step("leaving out what never runs", progress):
            model, structure, dropped = without_unused(model, structure)
    if latency is not None:
        timed = Latency(model, runtime or OnnxRuntime(), progress=progress)
        budget = latency_budget(latency, timed, structure)
    assert budget is not None  # the latency was asked for, or another cost
    if progress:
        expected = estimated(
            model, structure, given.calibration, given.examples, budget, method, refit, recover
        )
        if expected is not None:
            announce(str(expected), expected.seconds)
    problem = Problem(
        model,
        structure,
        given.batches,
        lambda: given.calibration,
        budget,
        to_inputs=given.to_inputs,
        seed=seed,
        progress=progress,
    )
    execute = Execution(model, structure, refit, given.calibration, verify, progress)
    limits = None if tolerance is None else check_limits(tolerance, structure.tasks, method, refit)

    def attempt(problem: Problem) -> tuple[Saliency, Outcome]:
        if limits is not None:
            return within_limits(limits, problem, method, execute)
        decision, saliency = method.decide(problem)
        plan = decision.plan(
            problem.structure, method=type(method).__name__, criterion=saliency.criterion, seed=seed
        )
        return saliency, execute(plan)

    train = (
        None if recover is None else _prepared(recover, given, model, structure, to_inputs, seed, progress)
    )
    cost, speed = budget.of, None
    if isinstance(cost, Latency):
        saliency, done, speed, cost = in_time(cost, problem, attempt)
    else:
        saliency, done = attempt(problem)
    facts: RecoveryFacts | None = None
    if train is not None:
        name = rule_name(recover)
        done, facts = recovered(train, name, done, model, structure, given.calibration, limits)
    warn_of_unfit(model, structure, done.applied.unfit)
    return PruningResult.of(
        structure,
        saliency,
        done.applied,
        done.deviation,
        done.refit,
        costs=[cost],
        dropped=dropped,
        speed=speed,
        recovery=facts,
    )


def _prepared(
    recover: Recovery,
    given: Data,
    model: nn.Module,
    structure: Structure,
    to_inputs: ToInputs | None,
    seed: int,
    progress: bool,
) -> Recover:
    example = given.example_inputs
    if structure.form == "graph":  # it only takes inputs of this shape
        example = structure.example_inputs
        check_shapes(given.example_inputs, example)
    aside = given.calibration.checks
    with step("reading the inputs to distill on", progress):
        return recover.prepare(
            Subject(model, structure.task_objects, example, aside, to_inputs, seed, progress)
        )


def _fits(method: Method) -> bool:
    """Whether ``method`` refits layers on the way."""
    return getattr(method, "refit", None) is not None
