"""``disparse inspect``: what can shrink, what cannot and why, and how far a budget can go."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import RenderableType
from rich.text import Text
from torch import nn

from disparse_structured.cli import sources, views
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.data import first_inputs, load_data, random_example
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import smallest
from disparse_structured.graph.batching import with_batch
from disparse_structured.pipeline import EXAMPLE_SAMPLES
from disparse_structured.report.pruning import GraphOnly, summarize_pins
from disparse_structured.structure import ChannelGroup, Structure

FLOORS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
"""The floors that ``--budget-steps`` compares."""


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Reads the model's structure; nothing is scored or changed."""
    model, structure = structure_alone(arguments, screen)
    floors = FLOORS if arguments.budget_steps else (arguments.floor,)
    document = _document(type(model).__name__, structure)
    document["reachable"] = [_reachable(structure, floor, arguments) for floor in floors]
    return Outcome(document, _views(document, structure))


def structure_alone(arguments: argparse.Namespace, screen: Screen) -> tuple[nn.Module, Structure]:
    """The model that ``arguments`` name, and its structure, read with ``--example`` or the first inputs."""
    torch.manual_seed(0)
    with screen.step("building the model"):
        model = sources.load_model(arguments.model)
        if arguments.example:
            example = with_batch(model, random_example(model, arguments.example, seed=0), arguments.batched)
        else:
            marked = functools.partial(with_batch, model, batched=arguments.batched)
            example = first_inputs(model, load_data(arguments.data), EXAMPLE_SAMPLES, marked)
        tasks = sources.load_tasks(arguments.tasks) if arguments.tasks else None
    with screen.step("reading its structure"):
        return model, sources.read_structure(model, example, tasks, arguments)


def _document(model: str, structure: Structure) -> dict[str, Any]:
    voters = structure.reach.sum(dim=0)
    unclaimed = sum(group.units for group in structure.groups if group.name in structure.unclaimed)
    return {
        "model": model,
        "form": structure.form,
        "fingerprint": structure.fingerprint,
        "tasks": list(structure.tasks),
        "macs": structure.cost.macs.dense,
        "parameters": structure.cost.parameters.dense,
        "units": {
            "total": structure.units,
            "shared": int((voters > 1).sum()),
            "private": int((voters == 1).sum()),
            "unclaimed": unclaimed,
            "dead": int((voters == 0).sum()) - unclaimed,
        },
        "groups": [_group(group, group.name in structure.unclaimed) for group in structure.groups],
        "pinned": [dataclasses.asdict(pin) for pin in structure.pinned],
        "graph_only": structure.graph_only,
        "constraints": [dataclasses.asdict(constraint) for constraint in structure.constraints],
    }


def _group(group: ChannelGroup, unclaimed: bool) -> dict[str, Any]:
    members = [
        {"parameter": member.parameter, "dim": member.dim, "positions_per_unit": member.index.shape[1]}
        for member in group.members
    ]
    return {
        "name": group.name,
        "kind": group.kind,
        "units": group.units,
        "reach": list(group.reach),
        "unclaimed": unclaimed,
        "members": members,
    }


def _reachable(structure: Structure, floor: float, arguments: argparse.Namespace) -> dict[str, Any]:
    rules = {
        "floor": floor,
        "min_width": arguments.min_width,
        "round_to": arguments.round_to,
        "protected": tuple(arguments.protect),
        "uniform": arguments.uniform,
    }
    # The smallest width depends neither on the limit nor on which cost is limited.
    keep = smallest(structure, Budget(macs=0.5, **rules))
    found: dict[str, Any] = dict(rules)
    for name, cost in (("macs", structure.cost.macs), ("parameters", structure.cost.parameters)):
        least, dense = cost.total(keep), cost.dense
        found[name] = {"least": least, "share": least / dense if dense else 1.0}
    return found


def _views(document: dict[str, Any], structure: Structure) -> Sequence[RenderableType]:
    units = document["units"]
    shown: list[RenderableType] = [
        Text(
            f"{document['model']}: {document['macs']:,.0f} MACs, {document['parameters']:,.0f} parameters; "
            f"tasks {', '.join(structure.tasks)}"
        ),
        Text(
            f"{units['total']} units in {len(structure.groups)} groups: {units['shared']} shared, "
            f"{units['private']} private, {units['dead']} dead, "
            f"{units['unclaimed']} kept for outputs that belong to no task"
        ),
        views.groups(document["groups"], structure.tasks),
    ]
    if structure.constraints:
        shown.append(views.constraints(document["constraints"]))
    if structure.pinned:
        shown.append(summarize_pins(structure.pinned))
    if only := GraphOnly.of(pinned=structure.graph_only, refused=0.0):
        shown.append(Text(only.advice, style="yellow"))
    return [*shown, Text("how far a budget can go:"), views.reachable(document["reachable"])]
