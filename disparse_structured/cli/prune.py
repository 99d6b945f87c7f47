"""``disparse prune``: from a model and its data to a verified, smaller model in a folder."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.cli import names, sources
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.data import first_inputs, load_data, load_images
from disparse_structured.cli.delivery import Subject, deliver
from disparse_structured.data.image_folder import Images
from disparse_structured.decision.arbiters.by_name import by_task
from disparse_structured.decision.budget import Budget
from disparse_structured.graph.batching import with_batch
from disparse_structured.latency import Latency
from disparse_structured.pipeline import EXAMPLE_SAMPLES
from disparse_structured.pipeline.latency import latency_budget
from disparse_structured.pipeline.quantizing import TOLERANCE
from disparse_structured.recovery import Distillation
from disparse_structured.recovery.distillation import FILE
from disparse_structured.structure import Structure


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Prunes, saves and exports; all facts are in ``report.json``."""
    method, refit = names.method(arguments, arguments.method), names.refit(arguments.refit)
    timed = arguments.latency is not None and arguments.latency is not True
    limits = None if timed else budget(arguments)
    torch.manual_seed(arguments.seed)
    with screen.step("building the model and opening the data"):
        model = sources.load_model(arguments.model, arguments.weights)
        data = load_images(arguments, model) if arguments.images else load_data(arguments.data)
        tasks = sources.load_tasks(arguments.tasks) if arguments.tasks else None
        marked = functools.partial(with_batch, model, batched=arguments.batched)
        example = first_inputs(model, data, EXAMPLE_SAMPLES, marked)
    with screen.step("reading the structure"):
        structure = sources.read_structure(model, example, tasks, arguments)
    if limits is None:
        limits = time_limit(arguments, model, structure, screen.progress)
    int8 = _int8(arguments, structure.tasks)
    recover = _recovery(arguments, model) if arguments.distill else None
    result = ds.prune(
        model,
        data,
        budget=limits,
        method=method,
        refit=refit,
        recover=recover,
        tolerance=dict(arguments.tolerance) or None,
        structure=structure,
        samples=arguments.samples,
        seed=arguments.seed,
        verify=arguments.verify,
        drop_unused=arguments.drop_unused,
        progress=screen.progress,
    )
    given = Subject(model, structure.task_objects, data)
    entries = {"images": data.facts()} if isinstance(data, Images) else None
    outcome = deliver(result, given, arguments, screen, entries, int8)
    recovery = result.report.recovery
    if recovery is not None and recovery.steps:
        (arguments.out / FILE).unlink(missing_ok=True)  # nothing is left to resume
    return outcome


def _recovery(arguments: argparse.Namespace, model: nn.Module) -> Distillation:
    folder = Path(arguments.distill).is_dir()
    return Distillation(
        load_images(arguments, model, arguments.distill)
        if folder
        else load_data(arguments.distill, "--distill"),
        steps=arguments.distill_steps,
        minutes=arguments.distill_minutes,
        folder=arguments.out,
    )


def _int8(arguments: argparse.Namespace, tasks: tuple[str, ...]) -> Mapping[str, float] | None:
    """By task, how far INT8 may move its output; None if there is to be no INT8 file."""
    given = arguments.int8_tolerance
    common: float = next((value for task, value in given if task is None), TOLERANCE)
    named: dict[str, float] = {task: value for task, value in given if task is not None}
    by_task(named, tasks, common, "--int8-tolerance")
    return {**dict.fromkeys(tasks, common), **named} if arguments.int8 else None


def time_limit(
    arguments: argparse.Namespace, model: nn.Module, structure: Structure, progress: bool
) -> Budget:
    """The budget of ``--latency TIME``."""
    runtime = names.runtime(arguments.runtime, threads=arguments.threads)
    latency = Latency(model, runtime, progress=progress)
    return latency_budget(arguments.latency, latency, structure, **widths(arguments))


def budget(arguments: argparse.Namespace) -> Budget:
    """The budget that the arguments state."""
    return ds.Budget(macs=arguments.macs, parameters=arguments.parameters, **widths(arguments))


def widths(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say about widths, as options of a budget."""
    return {
        "floor": arguments.floor,
        "min_width": arguments.min_width,
        "round_to": arguments.round_to,
        "protected": tuple(arguments.protect),
        "uniform": arguments.uniform,
    }
