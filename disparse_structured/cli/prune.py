"""``disparse prune``: from a factory and a loader to a proven, smaller model in a folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import nn

from disparse_structured.budget import Budget
from disparse_structured.cli import names, sources, views
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.usage import UsageError
from disparse_structured.errors import ExportError
from disparse_structured.export import export_onnx, measure_latency
from disparse_structured.pipeline import Pruned, prune
from disparse_structured.report.facts import ExportFacts
from disparse_structured.saving import PLAN, REPORT, WEIGHTS
from disparse_structured.tasks import Task

ONNX = "model.onnx"


@dataclass(frozen=True)
class _Subject:
    """What is pruned, and on what: example inputs, and real ones to check the ONNX file on."""

    model: nn.Module
    tasks: tuple[Task, ...]
    data: Any
    example: tuple[Any, ...]
    real: Sequence[tuple[Any, ...]]


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Prunes, saves, exports; every fact ends up in ``report.json``."""
    if arguments.latency and not arguments.onnx:
        raise UsageError("--latency times ONNX files. Leave --no-onnx out.")
    folder = _writable(Path(arguments.out))
    criterion, arbiter = names.criterion(arguments.criterion), names.arbiter(arguments.arbiter)
    ranking = names.ranking(arguments.ranking)
    budget = Budget(
        macs=arguments.macs,
        parameters=arguments.parameters,
        floor=arguments.floor,
        min_width=arguments.min_width,
        round_to=arguments.round_to,
        protected=tuple(arguments.protect),
    )
    torch.manual_seed(arguments.seed)
    with screen.step("building the model"):
        subject = _subject(arguments)
    pruned = prune(
        subject.model,
        subject.example,
        subject.tasks,
        subject.data,
        budget=budget,
        criterion=criterion,
        arbiter=arbiter,
        ranking=ranking,
        seed=arguments.seed,
        verify=arguments.verify,
        progress=screen.lively,
    )
    for name in (ONNX, f"{ONNX}.data"):
        (folder / name).unlink(missing_ok=True)  # of an earlier plan
    pruned.save(folder)
    report = json.loads(pruned.report.to_json())
    if arguments.onnx:
        report |= _deployed(subject, pruned, folder, arguments, screen)
        _rewrite(folder / REPORT, report)
    return _outcome(folder, pruned, report)


def _subject(arguments: argparse.Namespace) -> _Subject:
    if not (arguments.data or arguments.example):
        raise UsageError("there is nothing to score on. Give --data, or --example for label-free tasks.")
    model = sources.load_model(arguments.model, arguments.weights)
    tasks = sources.load_tasks(arguments.tasks)
    data = sources.load_data(arguments.data, arguments.batches) if arguments.data else None
    inputs = () if data is None else sources.first_inputs(model, data)
    real = [sources.first_samples(inputs, sources.REAL_SAMPLES)] if inputs else []
    if arguments.example:
        example = sources.random_example(model, arguments.example, arguments.seed)
    else:
        example = sources.first_samples(inputs, sources.EXAMPLE_SAMPLES)
    return _Subject(model, tasks, data, example, real)


def _deployed(
    subject: _Subject, pruned: Pruned, folder: Path, arguments: argparse.Namespace, screen: Screen
) -> dict[str, Any]:
    """The report's entries about the ONNX file; the saved folder stays if it cannot be made."""
    try:
        with screen.step("exporting to ONNX and checking the file in ONNX Runtime"):
            facts = _export(subject, pruned.model, folder / ONNX, pruned.plan.hash)
        # The folder may move: its report names its own file only.
        entries: dict[str, Any] = {"export": dataclasses.asdict(facts) | {"path": ONNX}}
        if arguments.latency:
            with screen.step("timing the dense and the pruned file in turn"):
                entries["latency"] = _latency(subject, folder / ONNX, facts, arguments.threads)
    except ExportError as error:
        raise ExportError(
            f"{error} The pruned model itself is proven and saved in {str(folder)!r}; "
            "--no-onnx leaves the export out."
        ) from error
    return entries


def _export(subject: _Subject, model: nn.Module, path: Path, plan: str) -> ExportFacts:
    return export_onnx(
        model,
        subject.example,
        path,
        outputs={task.name: task.tensors for task in subject.tasks},
        metadata={"tasks": json.dumps([task.name for task in subject.tasks]), "plan": plan},
        check_inputs=subject.real,
    )


def _latency(subject: _Subject, path: Path, facts: ExportFacts, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder, "dense.onnx")
        both = (facts, _export(subject, subject.model, dense, "dense"))
        alone = all(each.dynamic.startswith("batch") for each in both)
        inputs = sources.first_samples(subject.example, 1) if alone else subject.example
        found = measure_latency({"dense": dense, "pruned": path}, inputs, threads=threads)
    return dataclasses.asdict(found)


def _outcome(folder: Path, pruned: Pruned, report: dict[str, Any]) -> Outcome:
    files = [name for name in (PLAN, WEIGHTS, REPORT, ONNX) if (folder / name).is_file()]
    document = {"folder": str(folder), "files": files, "report": report}
    written = Text(f"written to {folder}: {', '.join(files)}")
    return Outcome(document, [pruned.plan, pruned.report, *views.attachments(report), written])


def _writable(folder: Path) -> Path:
    """``folder``, refused before hours of work if nothing can be written there."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UsageError(f"--out {str(folder)!r}: {str(existing)!r} is a file. Give a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--out {str(folder)!r}: {str(existing)!r} cannot be written to.")
    return folder


def _rewrite(path: Path, document: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    os.replace(draft, path)
