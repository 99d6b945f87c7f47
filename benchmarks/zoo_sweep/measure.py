"""Measure one network in this process, stage by stage: ``python -m benchmarks.zoo_sweep.measure NAME FILE``.

The row is written before every stage, so that no results are lost if the process is killed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness.files import write_text
from benchmarks.harness.limits import end_with_parent
from benchmarks.harness.machine import machine
from benchmarks.harness.row import encode, shortened
from benchmarks.harness.sweep import run_stage
from benchmarks.timm_sweep.cells import PARITY, SEED
from benchmarks.timm_sweep.measure import reasons
from benchmarks.timm_sweep.subject import planned
from benchmarks.zoo_sweep.cells import Cell, Row
from benchmarks.zoo_sweep.networks import Network, networks
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import smallest
from disparse_structured.export import export_onnx
from disparse_structured.structure import Structure, analyse, count_macs, count_parameters
from disparse_structured.surgery import Applied
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Task

Facts = Mapping[str, Any]

AGREE = 1e-3
"""The largest relative difference between predicted and counted MACs."""


class WrongError(Exception):
    """A stage ended, but what it found is wrong."""


class Run:
    """The stages of one cell; each returns fields of its :class:`Row`."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    @cached_property
    def _network(self) -> Network:
        torch.manual_seed(SEED)
        return networks()[self._cell.name]()

    @cached_property
    def _before(self) -> list[tuple[str, Any]]:
        return list(_state(self._network.model))

    @cached_property
    def _tasks(self) -> list[Task]:
        return [Task(name, output) for name, output in self._network.tasks.items()]

    @cached_property
    def _structure(self) -> Structure:
        return analyse(self._network.model, self._network.inputs, self._tasks, outputs="tasks")

    @cached_property
    def _applied(self) -> Applied:
        return apply(self._network.model, planned(self._structure), self._structure)

    def build(self) -> Facts:
        assert self._before
        return {"parameters": count_parameters(self._network.model)}

    def structure(self) -> Facts:
        found = self._structure
        least = smallest(found, Budget(parameters=0.5, floor=0.0, round_to=1))
        cost = found.cost.parameters
        return {
            "groups": len(found.groups),
            "units": found.units,
            "prunable": 1 - cost.total(least) / cost.dense,
            "pinned": reasons(found.pinned),
        }

    def surgery(self) -> Facts:
        done = self._applied
        assert done.verification is not None
        return {
            "left": count_parameters(done.model),
            "twin": max(done.verification.deviation.values()),
            "dtype": done.verification.dtype.removeprefix("torch."),
            "refused": {refusal.group: shortened(refusal.reason) for refusal in done.refused},
            "beyond": done.verification.beyond,
        }

    def counting(self) -> Facts:
        predicted = self._structure.cost.macs.total(self._applied.plan.keep(self._structure))
        counted = count_macs(self._applied.model, self._structure.example_inputs)
        if abs(counted - predicted) > AGREE * max(predicted, 1):
            raise WrongError(f"predicted {predicted:,.0f} MACs, counted {counted:,.0f}")
        return {"predicted": predicted, "counted": counted}

    def untouched(self) -> Facts:
        after = list(_state(self._network.model))
        if [path for path, _ in after] != [path for path, _ in self._before]:
            raise WrongError("the model has different attributes than before")
        for (path, now), (_, then) in zip(after, self._before, strict=True):
            if now is not then and not (type(now) is type(then) and now == then):
                raise WrongError(f"{path} is a different object than before")
        return {}

    def onnx(self) -> Facts:
        outputs = {task.name: task.tensors for task in self._tasks}
        with tempfile.TemporaryDirectory() as folder:
            facts = export_onnx(
                self._applied.model,
                self._structure.example_inputs,
                Path(folder, "pruned.onnx"),
                outputs=outputs,
                tolerance=PARITY,
            )
        return {"parity": max(fact.max_rel for fact in facts.parity), "dynamic": facts.dynamic}

    def graph(self) -> Facts:
        options: dict[str, Any] = {"form": "graph", "outputs": "tasks"}
        structure = analyse(self._network.model, self._network.inputs, self._tasks, **options)
        done = apply_graph(self._network.model, planned(structure), structure)
        assert done.verification is not None
        return {"graph_twin": max(done.verification.deviation.values())}


STAGES: Mapping[str, tuple[Callable[[Run], Facts], str]] = {
    "build": (Run.build, ""),
    "structure": (Run.structure, "build"),
    "surgery": (Run.surgery, "structure"),
    "counting": (Run.counting, "surgery"),
    "untouched": (Run.untouched, "build"),
    "onnx": (Run.onnx, "surgery"),
}
"""The stages of every network, and the stage that must have ended before each."""


def measure(cell: Cell, keep: Callable[[Row], None], *, onnx: bool = True) -> Row:
    """Return the row of ``cell``; ``keep`` gets the row so far before every stage, and the whole row last."""
    run = Run(cell)
    row = Row(cell, settings=cell.settings, machine=machine())
    stages = dict(STAGES) if onnx else {name: stage for name, stage in STAGES.items() if name != "onnx"}
    for name, (work, needed) in stages.items():
        if not needed or needed in row.seconds:
            row = run_stage(row, name, partial(work, run), keep)
    if "build" in row.seconds and "surgery" not in row.seconds:
        row = run_stage(row, "graph", run.graph, keep)
    row = replace(row, stage="")
    keep(row)
    return row


def _state(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every module's attributes, parameters, buffers and hooks, and the contents of its containers."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            yield f"{path}.{name}", value
            if isinstance(value, dict):
                yield from ((f"{path}.{name}[{key!r}]", item) for key, item in value.items())
            elif isinstance(value, list | tuple):
                yield from ((f"{path}.{name}[{number}]", item) for number, item in enumerate(value))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo_sweep.measure", description=__doc__)
    parser.add_argument("name", help="library/name")
    parser.add_argument("file", type=Path, help="where to write the row")
    parser.add_argument("--no-onnx", action="store_true", help="skip the export")
    options = parser.parse_args(arguments)
    end_with_parent()
    warnings.filterwarnings("ignore")
    cell = Cell(options.name)
    measure(cell, lambda row: write_text(options.file, encode(row)), onnx=not options.no_onnx)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
