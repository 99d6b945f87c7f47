"""``disparse bench``: the latency of a saved folder's ONNX files and of the dense network."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.text import Text

from disparse_structured.cli import names
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.folders import Folder, record
from disparse_structured.cli.usage import UsageError
from disparse_structured.export import export_onnx
from disparse_structured.export.session import free_batch, open_session, shaped_for
from disparse_structured.files import INT8_ONNX, ONNX
from disparse_structured.graph.capture import tensor_leaves
from disparse_structured.pipeline.latency import latencies
from disparse_structured.pipeline.result import export_pruned
from disparse_structured.report.facts import LatencyFacts


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Exports the models that have no file yet, and times all files in turn."""
    folder = Folder(arguments)
    with tempfile.TemporaryDirectory() as drafts:
        with screen.step("building and exporting"):
            files = _files(folder, Path(drafts))
        with screen.step("measuring the files in turn"):
            facts = _measured(folder, files)
    document = dataclasses.asdict(facts) | {"verdicts": list(facts.verdicts)}
    if arguments.save:
        # The INT8 file has an entry of its own.
        record(folder.path, {"latency": dataclasses.asdict(facts) | {"models": document["models"][:2]}})
    return Outcome(document, [facts, *map(Text, facts.verdicts)])


def _files(folder: Folder, drafts: Path) -> dict[str, Path]:
    """The files to time, by name, the reference first."""
    files = {}
    if folder.arguments.model is not None:
        files["dense"] = drafts / "dense.onnx"
        outputs = {task.name: task.tensors for task in folder.tasks(folder.dense)}
        export_onnx(folder.dense, folder.saved.inputs(), files["dense"], outputs=outputs)
    files["pruned"] = folder.path / ONNX
    if not files["pruned"].is_file():
        if folder.arguments.model is None:
            raise UsageError(f"{str(folder.path)!r} has no {ONNX}. Give --model to export it.")
        files["pruned"] = drafts / ONNX
        model = folder.model()
        export_pruned(model, folder.tasks(model), folder.saved.plan, folder.saved.inputs(), files["pruned"])
    if (folder.path / INT8_ONNX).is_file():
        files["int8"] = folder.path / INT8_ONNX
    return files


def _measured(folder: Folder, files: Mapping[str, Path]) -> LatencyFacts:
    given = folder.arguments
    runtime = names.runtime(given.runtime, threads=given.threads)
    sessions = [open_session(path, threads=1) for path in files.values()]
    batch = given.batch or (1 if all(map(free_batch, sessions)) else None)
    inputs = folder.saved.inputs()
    for session in sessions:
        inputs = shaped_for(session, inputs, batch=batch, size=given.size)
    return latencies(runtime, files, tuple(tensor_leaves(inputs)))
