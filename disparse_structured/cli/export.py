"""``disparse export``: the ONNX file of a saved folder, again or for other shapes."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from disparse_structured.cli import views
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.folders import Folder, record
from disparse_structured.files import ONNX
from disparse_structured.latency.setting import resized
from disparse_structured.pipeline.result import export_pruned


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Builds the model, exports it and checks the file. The report describes the file in the folder."""
    folder = Folder(arguments)
    with screen.step("building the model and loading the weights"):
        example = resized(folder.saved.inputs(), arguments.batch, arguments.size)
        model = folder.model(example)
    path = arguments.out or folder.path / ONNX
    with screen.step("exporting to ONNX and checking the file in ONNX Runtime"):
        facts = export_pruned(
            model,
            folder.tasks(model),
            folder.saved.plan,
            example,
            path,
            opset=arguments.opset,
            check_inputs=folder.check_inputs(model),
            **_form(arguments.dynamic),
        )
    entry = dataclasses.asdict(facts)
    if arguments.out is None:
        entry["path"] = ONNX
        record(folder.path, {"export": entry})
    return Outcome({"path": str(path), "export": entry}, views.attachments({"export": entry}))


def _form(dynamic: str | None) -> dict[str, Any]:
    """``--dynamic`` as options of the export."""
    if dynamic is None:
        return {}
    return {
        "dynamic_batch": "batch" in dynamic.split("+"),
        "dynamic_size": "size" in dynamic.split("+"),
        "narrower": False,
    }
