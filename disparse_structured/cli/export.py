"""``disparse export``: the ONNX file of a saved folder, again or for other shapes."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch
from torch.utils import _pytree as pytree

from disparse_structured.cli import views
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.folders import Folder, export_entry, record
from disparse_structured.cli.usage import UsageError
from disparse_structured.files import ONNX
from disparse_structured.latency.setting import resized
from disparse_structured.pipeline.result import export_pruned


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Builds the model, exports it and checks the file. The report describes the file in the folder."""
    folder = Folder(arguments)
    with screen.step("building the model and loading the weights"):
        example = _example(folder.saved.inputs(), arguments.batch, arguments.size)
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
        entry = export_entry(facts)
        record(folder.path, {"export": entry})
    return Outcome({"path": str(path), "export": entry}, views.attachments({"export": entry}))


def _example(inputs: tuple[Any, ...], batch: int | None, size: tuple[int, int] | None) -> tuple[Any, ...]:
    """``inputs`` with so many examples, and images of this size."""
    found = resized(inputs, batch, size)
    shapes = [list(leaf.shape) for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]
    if size is not None and not any(len(shape) == 4 and tuple(shape[2:]) == size for shape in shapes):
        raise UsageError(
            f"--size is for images [N, C, H, W], and the model's inputs are {shapes}. Leave it out."
        )
    return found


def _form(dynamic: str | None) -> dict[str, Any]:
    """``--dynamic`` as options of the export."""
    if dynamic is None:
        return {}
    return {
        "dynamic_batch": "batch" in dynamic.split("+"),
        "dynamic_size": "size" in dynamic.split("+"),
        "narrower": False,
    }
