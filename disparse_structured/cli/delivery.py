"""What commands that end in a folder share: the subject, the ONNX file and its proof, the outcome."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text
from torch import nn

from disparse_structured.cli import sources, views
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.usage import UsageError
from disparse_structured.data.batches import take
from disparse_structured.errors import ExportError
from disparse_structured.export import export_onnx, measure_latency
from disparse_structured.pipeline import EXAMPLE_SAMPLES, Pruned
from disparse_structured.report.facts import ExportFacts
from disparse_structured.surgery.saving import PLAN, REPORT, WEIGHTS, extend_report
from disparse_structured.tasks import Task

ONNX = "model.onnx"


@dataclass(frozen=True)
class Subject:
    """What is pruned, and on what: example inputs, and real ones to check the ONNX file on."""

    model: nn.Module
    tasks: tuple[Task, ...]
    data: Any
    example: tuple[Any, ...]
    real: Sequence[tuple[Any, ...]]


def subject(arguments: argparse.Namespace) -> Subject:
    """The subject that the arguments of a command name."""
    if not (arguments.data or arguments.example):
        raise UsageError("there is nothing to score on. Give --data, or --example for label-free tasks.")
    model = sources.load_model(arguments.model, arguments.weights)
    tasks = sources.load_tasks(arguments.tasks)
    data = sources.load_data(arguments.data, arguments.batches) if arguments.data else None
    inputs = () if data is None else sources.first_inputs(model, data)
    real = [take(inputs, slice(sources.REAL_SAMPLES))] if inputs else []
    if arguments.example:
        example = sources.random_example(model, arguments.example, arguments.seed)
    else:
        example = take(inputs, slice(EXAMPLE_SAMPLES))
    return Subject(model, tasks, data, example, real)


def deliver(
    given: Subject,
    pruned: Pruned,
    folder: Path,
    arguments: argparse.Namespace,
    screen: Screen,
    entries: Mapping[str, Any] | None = None,
) -> Outcome:
    """Saves ``pruned``, exports it unless told not to, and says what is where.

    ``entries`` go into ``report.json`` with the facts about the ONNX file. If that cannot be made, the
    saved folder stays.
    """
    for name in (ONNX, f"{ONNX}.data"):
        (folder / name).unlink(missing_ok=True)  # of an earlier plan
    pruned.save(folder)
    report = extend_report(folder, entries or {})
    if arguments.onnx:
        report = extend_report(folder, _deployed(given, pruned, folder, arguments, screen))
    files = [name for name in (PLAN, WEIGHTS, REPORT, ONNX) if (folder / name).is_file()]
    document = {"folder": str(folder), "files": files, "report": report}
    written = Text(f"written to {folder}: {', '.join(files)}")
    shown: list[RenderableType] = [pruned.plan, pruned.report, *views.attachments(report), written]
    return Outcome(document, shown)


def writable(folder: Path) -> Path:
    """``folder``, refused before hours of work if nothing can be written there."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UsageError(f"--out {str(folder)!r}: {str(existing)!r} is a file. Give a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--out {str(folder)!r}: {str(existing)!r} cannot be written to.")
    return folder


def _deployed(
    given: Subject, pruned: Pruned, folder: Path, arguments: argparse.Namespace, screen: Screen
) -> dict[str, Any]:
    """The report's entries about the ONNX file."""
    tasks = given.tasks
    if pruned.report.graph is not None:  # it returns what the tasks picked, by their names
        tasks = tuple(dataclasses.replace(task, output=task.name) for task in tasks)
    try:
        with screen.step("exporting to ONNX and checking the file in ONNX Runtime"):
            facts = _export(given, pruned.model, tasks, folder / ONNX, pruned.plan.hash)
        # The folder may move: its report names its own file only.
        entries: dict[str, Any] = {"export": dataclasses.asdict(facts) | {"path": ONNX}}
        if arguments.latency:
            with screen.step("timing the dense and the pruned file in turn"):
                entries["latency"] = _latency(given, folder / ONNX, facts, arguments.threads)
    except ExportError as error:
        raise ExportError(
            f"{error} The pruned model itself is proven and saved in {str(folder)!r}; "
            "--no-onnx leaves the export out."
        ) from error
    return entries


def _export(given: Subject, model: nn.Module, tasks: Sequence[Task], path: Path, plan: str) -> ExportFacts:
    return export_onnx(
        model,
        given.example,
        path,
        outputs={task.name: task.tensors for task in tasks},
        metadata={"tasks": json.dumps([task.name for task in tasks]), "plan": plan},
        check_inputs=given.real,
    )


def _latency(given: Subject, path: Path, facts: ExportFacts, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder, "dense.onnx")
        both = (facts, _export(given, given.model, given.tasks, dense, "dense"))
        alone = all(each.dynamic.startswith("batch") for each in both)
        inputs = take(given.example, slice(1)) if alone else given.example
        found = measure_latency({"dense": dense, "pruned": path}, inputs, threads=threads)
    return dataclasses.asdict(found)
