"""``disparse shrink``: from a model and a few dozen unlabelled inputs to a proven, smaller model."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from disparse_structured.cli import names, sources
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.delivery import Subject, deliver, writable
from disparse_structured.cli.inputs import load_inputs
from disparse_structured.cli.prune import budget
from disparse_structured.cli.usage import UsageError
from disparse_structured.data.batches import take
from disparse_structured.decision.arbiters import Arbiter, Priority
from disparse_structured.graph.outputs import tasks_of
from disparse_structured.pipeline import EXAMPLE_SAMPLES, calibrate, shrink


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Shrinks, saves, exports; every fact ends up in ``report.json``."""
    if arguments.latency and not arguments.onnx:
        raise UsageError("--latency times ONNX files. Leave --no-onnx out.")
    if arguments.samples < 2:
        raise UsageError(f"--samples {arguments.samples}: at least 2, half of them judge the refit.")
    folder = writable(Path(arguments.out))
    criterion, arbiter = names.scoring(arguments.criterion), _arbiter(arguments)
    ranking, method = names.ranking(arguments.ranking), names.refit(arguments.refit)
    limits, tolerance = budget(arguments), names.by_task(arguments.tolerance, "tolerance")
    torch.manual_seed(arguments.seed)
    with screen.step("building the model and reading the inputs"):
        model = sources.load_model(arguments.model, arguments.weights)
        inputs = load_inputs(arguments.inputs, arguments.samples)
        calibration = calibrate(model, inputs, samples=arguments.samples, seed=arguments.seed)
        first = calibration.chunks[0]
        example = take(first, slice(EXAMPLE_SAMPLES))
        tasks = sources.load_tasks(arguments.tasks) if arguments.tasks else tasks_of(model, example)
    pruned = shrink(
        model,
        calibration,
        tasks,
        budget=limits,
        criterion=criterion,
        arbiter=arbiter,
        ranking=ranking,
        refit=method,
        tolerance=tolerance or None,
        seed=arguments.seed,
        verify=arguments.verify,
        form=arguments.form,
        attention=arguments.attention,
        progress=screen.interactive,
    )
    given = Subject(model, tasks, calibration, example, [take(first, slice(sources.REAL_SAMPLES))])
    return deliver(given, pruned, folder, arguments, screen)


def _arbiter(arguments: argparse.Namespace) -> Arbiter:
    """By its name, or the one that ``--priority`` implies."""
    weights = names.by_task(arguments.priority, "priority")
    if not weights:
        return names.arbiter(arguments.arbiter)
    if arguments.arbiter not in ("priority", "weighted-mean"):
        raise UsageError(f"--priority is no setting of --arbiter {arguments.arbiter}. Leave one of them out.")
    try:
        return Priority(weights)
    except ValueError as error:
        raise UsageError(f"--priority will not do. {error}") from error
