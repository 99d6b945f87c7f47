"""What commands that write a folder share: the pruned model on disk, the ONNX file, the outcome."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text
from torch import nn

from disparse_structured.cli import views
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.data import CHECK_SAMPLES, first_inputs
from disparse_structured.cli.parsers import build_parser
from disparse_structured.cli.settings import settings_text
from disparse_structured.data.batches import take
from disparse_structured.data.call import marked_like
from disparse_structured.data.image_folder import Images
from disparse_structured.errors import BatchError, ExportError
from disparse_structured.files import (
    INT8_ONNX,
    ONNX,
    PAGE,
    SETTINGS,
    SHEET,
    remove_derived,
    write_text,
)
from disparse_structured.graph.capture import tensor_leaves
from disparse_structured.latency import OnnxRuntime
from disparse_structured.pipeline import SAMPLES, PruningResult
from disparse_structured.pipeline.latency import latencies
from disparse_structured.pipeline.quantizing import quantize_result
from disparse_structured.report.facts import ExportFacts
from disparse_structured.report.page.html import page
from disparse_structured.report.page.run import Run
from disparse_structured.surgery.saved import PLAN, REPORT, WEIGHTS
from disparse_structured.surgery.saving import extend_report
from disparse_structured.tasks import Task


@dataclass(frozen=True)
class Subject:
    """What was given: the dense model, its tasks, and the data."""

    model: nn.Module
    tasks: tuple[Task, ...]
    data: Any


def deliver(
    result: PruningResult,
    given: Subject,
    arguments: argparse.Namespace,
    screen: Screen,
    entries: Mapping[str, Any] | None = None,
    int8: Mapping[str, float] | None = None,
) -> Outcome:
    """Saves ``result``, exports it if asked to, and says what was written.

    ``entries`` go into ``report.json``, as do the facts about the ONNX file. If the export fails, the saved
    folder remains.

    Args:
        result: what was pruned.
        given: the model whose latency is measured too, and the data on whose first samples the ONNX file is
            checked.
        int8: by task, how far INT8 may move its output; None for no INT8 file.
    """
    folder = arguments.out
    remove_derived(folder)
    result.save(folder)
    report = extend_report(folder, {"command": arguments.words, **(entries or {})})
    write_text(folder / SETTINGS, settings_text(arguments, build_parser()))
    if isinstance(given.data, Images):
        given.data.contact_sheet(folder / SHEET)
    if arguments.onnx:
        report = extend_report(folder, _deployed(result, given, arguments, screen))
    if int8 is not None:
        report = extend_report(folder, _quantized(result, given, arguments, screen, int8))
    if arguments.html:
        write_text(folder / PAGE, page(Run.of_folder(folder)))
    files = [
        name
        for name in (PLAN, WEIGHTS, REPORT, SETTINGS, ONNX, INT8_ONNX, SHEET, PAGE)
        if (folder / name).is_file()
    ]
    document = {"folder": str(folder), "files": files, "report": report}
    written = Text(f"written to {folder}: {', '.join(files)}")
    shown: list[RenderableType] = [result.plan, result.report, *views.attachments(report), written]
    return Outcome(document, shown)


def _deployed(
    result: PruningResult, given: Subject, arguments: argparse.Namespace, screen: Screen
) -> dict[str, Any]:
    """Exports the result, which adds the file to the report; returns further entries."""
    path = arguments.out / ONNX
    entries: dict[str, Any] = {}
    try:
        with screen.step("exporting to ONNX and checking the file in ONNX Runtime"):
            marked = functools.partial(marked_like, others=result.example_inputs)
            checks = [first_inputs(given.model, given.data, CHECK_SAMPLES, marked)]
            facts = result.export(path, check_inputs=checks)
        if arguments.latency is True:
            with screen.step("measuring the latency of the dense and the pruned file in turn"):
                entries["latency"] = _latency(result, given, path, facts, arguments.threads)
    except ExportError as error:
        raise ExportError(
            f"{error} The pruned model itself is saved in {str(arguments.out)!r}; --no-onnx skips the export."
        ) from error
    return entries


def _quantized(
    result: PruningResult,
    given: Subject,
    arguments: argparse.Namespace,
    screen: Screen,
    tolerance: Mapping[str, float],
) -> dict[str, Any]:
    """The report's entry about the INT8 file."""
    try:
        with screen.step("measuring which layers may be INT8"):
            facts = quantize_result(
                result,
                arguments.out / ONNX,
                given.data,
                arguments.out / INT8_ONNX,
                dense=given.model,
                dense_tasks=given.tasks,
                tolerance=tolerance,
                samples=arguments.samples or SAMPLES,
                threads=arguments.threads,
            )
    except (BatchError, ExportError) as error:
        raise type(error)(
            f"{error} The pruned model and {ONNX} are saved in {str(arguments.out)!r}; leave out --int8 "
            "to do without the INT8 file."
        ) from error
    own = {"path": facts.path and INT8_ONNX, "float_path": ONNX}
    return {"int8": dataclasses.asdict(facts) | own}


def _latency(
    result: PruningResult, given: Subject, path: Path, facts: ExportFacts, threads: int
) -> dict[str, Any]:
    from disparse_structured.export import export_onnx  # ONNX may not be installed

    outputs = {task.name: task.tensors for task in given.tasks}
    with tempfile.TemporaryDirectory() as folder:
        dense_path = Path(folder, "dense.onnx")
        dense_facts = export_onnx(given.model, result.example_inputs, dense_path, outputs=outputs)
        any_batch = all(each.dynamic.startswith("batch") for each in (facts, dense_facts))
        inputs = take(result.example_inputs, slice(1)) if any_batch else result.example_inputs
        tensors = tuple(tensor_leaves(inputs))
        found = latencies(OnnxRuntime(threads=threads), {"dense": dense_path, "pruned": path}, tensors)
    return dataclasses.asdict(found)
