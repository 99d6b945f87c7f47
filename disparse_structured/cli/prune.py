"""``disparse prune``: from a factory and a loader to a proven, smaller model in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from disparse_structured.cli import names
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.delivery import deliver, subject, writable
from disparse_structured.cli.usage import UsageError
from disparse_structured.decision.budget import Budget
from disparse_structured.pipeline import prune


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Prunes, saves, exports; every fact ends up in ``report.json``."""
    if arguments.latency and not arguments.onnx:
        raise UsageError("--latency times ONNX files. Leave --no-onnx out.")
    folder = writable(Path(arguments.out))
    criterion, arbiter = names.criterion(arguments.criterion), names.arbiter(arguments.arbiter)
    ranking = names.ranking(arguments.ranking)
    limits = budget(arguments)
    torch.manual_seed(arguments.seed)
    with screen.step("building the model"):
        given = subject(arguments)
    pruned = prune(
        given.model,
        given.example,
        given.tasks,
        given.data,
        budget=limits,
        criterion=criterion,
        arbiter=arbiter,
        ranking=ranking,
        seed=arguments.seed,
        verify=arguments.verify,
        form=arguments.form,
        attention=arguments.attention,
        progress=screen.interactive,
    )
    return deliver(given, pruned, folder, arguments, screen)


def budget(arguments: argparse.Namespace) -> Budget:
    """The budget that the arguments state."""
    return Budget(
        macs=arguments.macs,
        parameters=arguments.parameters,
        floor=arguments.floor,
        min_width=arguments.min_width,
        round_to=arguments.round_to,
        protected=tuple(arguments.protect),
    )
