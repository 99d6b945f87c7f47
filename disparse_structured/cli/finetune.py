"""``disparse finetune``: trains the model of a saved folder, and saves it back."""

from __future__ import annotations

import argparse
import dataclasses
import os

import torch
from rich.text import Text

from disparse_structured.cli import views
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.data import as_batches, load_data
from disparse_structured.cli.folders import Folder, record
from disparse_structured.cli.train import announcer, training_config
from disparse_structured.files import INT8_ONNX, ONNX, made_folder
from disparse_structured.pipeline.result import export_pruned
from disparse_structured.surgery.pruned_graph import tasks_of
from disparse_structured.surgery.saving import save_back
from disparse_structured.training import train

CHECKPOINT = "finetune.pt"


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome | None:
    """Trains (or resumes from the folder's checkpoint), saves and exports.

    Under ``torchrun`` all processes train, and the first one writes and reports.
    """
    folder = Folder(arguments, own_tasks=True)
    target = folder.path if arguments.out is None else made_folder(arguments.out)
    torch.manual_seed(arguments.seed)
    with screen.step("building the model and loading the weights"):
        model = folder.model()
        outputs, tasks = folder.tasks(model), tasks_of(model, folder.given_tasks or ())
        data = as_batches(load_data(arguments.data))
    validation = as_batches(load_data(arguments.validation, "--validation")) if arguments.validation else None
    facts = train(
        model,
        tasks,
        data,
        training_config(arguments, None),
        validation=validation,
        checkpoint=target / CHECKPOINT,
        checkpoint_every=arguments.checkpoint_every,
        on_epoch=announcer(arguments.epochs, screen),
        progress=screen.progress,
    )
    if int(os.environ.get("RANK") or 0):
        return None
    entry = {
        "command": arguments.words,
        "lr": arguments.lr,
        "precision": arguments.precision,
        **dataclasses.asdict(facts),
    }
    save_back(folder.path, model.eval(), training=entry, to=target)
    for name in (ONNX, f"{ONNX}.data", INT8_ONNX, CHECKPOINT):
        (target / name).unlink(missing_ok=True)  # they contain earlier weights, or are no longer needed
    entries = {}
    if arguments.onnx:
        with screen.step("exporting to ONNX and checking the file in ONNX Runtime"):
            exported = export_pruned(
                model,
                outputs,
                folder.saved.plan,
                folder.saved.inputs(),
                target / ONNX,
                check_inputs=folder.check_inputs(model),
            )
        entries["export"] = dataclasses.asdict(exported) | {"path": ONNX}
    report = record(target, entries, html=arguments.html)
    return Outcome(
        {"folder": str(target), "report": report},
        [*views.attachments(report), Text(f"written to {target}")],
    )
