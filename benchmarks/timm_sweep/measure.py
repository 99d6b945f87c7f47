"""One cell in this process, stage by stage; ``python -m benchmarks.timm_sweep.measure MODEL KIND FILE``.

The row is written before every stage, so that what was found is not lost if the process is killed. The
process ends when its standard input is closed, so it does not outlive the process that started it.
"""

from __future__ import annotations

import argparse
import functools
import math
import resource
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.files import write_text
from benchmarks.harness.limits import end_with_parent, within
from benchmarks.harness.machine import machine
from benchmarks.harness.row import encode, shortened
from benchmarks.harness.sweep import run_stage
from benchmarks.timm_sweep.cells import KINDS, PARITY, SEED, Cell, Row
from benchmarks.timm_sweep.stock import Stock
from benchmarks.timm_sweep.subject import Subject
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import smallest
from disparse_structured.export import export_onnx
from disparse_structured.graph.copies import copied
from disparse_structured.structure import Pin, count_parameters
from disparse_structured.tasks import Task

STEPS = (0.1, 0.01, 0.001, 0.0001)
"""Shares of the loss that one step should remove, by its first-order prediction; tried in turn."""

STOCK_SECONDS = 120
"""The limit of each stage of stock Torch-Pruning: on some models its groups grow without end."""

REASONS = 8
"""How many reasons for pinned parameters are kept."""

Facts = Mapping[str, Any]


class LearningError(Exception):
    """No step lowers the loss."""


class Run:
    """The stages of one cell; each returns fields of its :class:`Row`."""

    def __init__(self, cell: Cell) -> None:
        self._subject = Subject(cell)

    def build(self) -> Facts:
        return {"parameters": count_parameters(self._subject.network.model)}

    def export(self) -> Facts:
        network = self._subject.network
        torch.export.export(network.model, network.inputs, strict=False)
        return {}

    def structure(self) -> Facts:
        structure = self._subject.structure
        return {
            "groups": len(structure.groups),
            "units": structure.units,
            "macs": structure.cost.macs.dense,
            "pinned": reasons(structure.pinned),
        }

    def prunable(self) -> Facts:
        structure = self._subject.structure
        least = smallest(structure, Budget(parameters=0.5, floor=0.0, round_to=1))
        cost = structure.cost
        return {
            "prunable_parameters": 1 - cost.parameters.total(least) / cost.parameters.dense,
            "prunable_macs": 1 - cost.macs.total(least) / cost.macs.dense,
        }

    def plan(self) -> Facts:
        structure = self._subject.structure
        return {"planned": round(structure.cost.parameters.total(self._subject.plan.keep(structure)))}

    def surgery(self) -> Facts:
        done = self._subject.operation
        assert done.verification is not None
        return {
            "left": count_parameters(done.model),
            "macs_left": self._subject.structure.cost.macs.total(done.plan.keep(self._subject.structure)),
            "twin": max(done.verification.deviation.values()),
            "tolerance": done.verification.tolerance,
            "dtype": done.verification.dtype.removeprefix("torch."),
            "refused": {refusal.group: shortened(refusal.reason) for refusal in done.refused},
        }

    def onnx(self) -> Facts:
        network = self._subject.network
        outputs = {task.name: task.tensors for task in network.tasks}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "pruned.onnx")
            # Free sizes would be one more export for every model of a fixed size.
            facts = export_onnx(
                self._subject.operation.model,
                network.inputs,
                file,
                outputs=outputs,
                dynamic_size=False,
                tolerance=PARITY,
            )
        return {"parity": max(fact.max_rel for fact in facts.parity), "dynamic": facts.dynamic}

    def train(self) -> Facts:
        network = self._subject.network
        return {"learned": learned(self._subject.operation.model, network.inputs, network.tasks)}

    def graph(self) -> Facts:
        done = self._subject.graph
        assert done.verification is not None
        left = sum(parameter.numel() for parameter in done.model.parameters())
        return {"graph_left": left, "graph_twin": max(done.verification.deviation.values())}

    def stock_graph(self) -> Facts:
        self._stock = Stock(self._subject.network)
        return {}

    def stock_prune(self) -> Facts:
        return {"stock_left": self._stock.prune()}

    def stock_run(self) -> Facts:
        self._stock.run()
        return {}


Stage = tuple[Callable[[Run], Facts], str]
"""What the stage does, and the stage that must have ended before it."""

STAGES: Mapping[str, Stage] = {
    "build": (Run.build, ""),
    "warm-up": (Run.export, "build"),
    "export": (Run.export, "warm-up"),
    "structure": (Run.structure, "build"),
    "prunable": (Run.prunable, "structure"),
    "plan": (Run.plan, "structure"),
    "surgery": (Run.surgery, "plan"),
    "onnx": (Run.onnx, "surgery"),
    "train": (Run.train, "surgery"),
    "graph": (Run.graph, "build"),
    "stock graph": (Run.stock_graph, "build"),
    "stock prune": (Run.stock_prune, "stock graph"),
    "stock run": (Run.stock_run, "stock prune"),
}


def measure(cell: Cell, keep: Callable[[Row], None], *, stock: bool = True, graph: bool = True) -> Row:
    """The row of ``cell``; ``keep`` gets the row so far before every stage, and the whole row at the end."""
    left_out = {name for name in STAGES if name.startswith("stock") and not stock}
    left_out |= set() if graph else {"graph"}
    run = Run(cell)
    row = Row(cell, settings=cell.settings, machine=machine())
    for name, (work, needed) in STAGES.items():
        beside = name.startswith("stock")
        if name in left_out or (needed and needed not in row.seconds):
            continue
        stage = functools.partial(_limited, work, run, STOCK_SECONDS if beside else 0)
        row = run_stage(replace(row, memory=peak()), name, stage, keep)
    row = replace(row, stage="", memory=peak())
    keep(row)
    return row


def _limited(work: Callable[[Run], Facts], run: Run, seconds: int) -> Facts:
    with within(seconds):
        return work(run)


def learned(model: nn.Module, inputs: tuple[Tensor, ...], tasks: Sequence[Task]) -> float:
    """The share of the loss that one SGD step removes, in train mode; ``model`` is not changed.

    The loss is the mean square of every output's distance from random targets, summed.

    Raises:
        LearningError: no step of :data:`STEPS` lowers it.
    """
    before = math.nan
    for share in STEPS:
        student = copied(model).train()
        loss = _loss(student, inputs, tasks)
        loss.backward()
        before = float(loss.detach())
        parameters = list(student.parameters())
        squared = sum(float(each.grad.square().sum()) for each in parameters if each.grad is not None)
        if not squared > 0:
            break
        torch.optim.SGD(parameters, lr=share * before / squared).step()
        with torch.no_grad():
            after = float(_loss(student, inputs, tasks))
        if after < before:
            return 1 - after / before
    raise LearningError(f"no step lowers the loss of {before:.3g}")


def reasons(pinned: Sequence[Pin]) -> list[tuple[str, float]]:
    """The reasons of pins, and the share of the parameters that each holds at most; largest first."""
    shares: dict[str, float] = defaultdict(float)
    for pin in pinned:
        shares[pin.reason] += pin.share
    largest = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    return [(reason, min(1.0, share)) for reason, share in largest[:REASONS]]


def peak() -> float:
    """Peak resident GB of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timm_sweep.measure", description=__doc__)
    parser.add_argument("model", help="name in timm")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("file", type=Path, help="where to write the row")
    parser.add_argument("--image-size", type=int, help="side in pixels (default: timm's)")
    parser.add_argument("--no-stock", action="store_true", help="without stock Torch-Pruning")
    parser.add_argument("--no-graph", action="store_true", help="without pruning the exported graph")
    options = parser.parse_args(arguments)
    end_with_parent()
    warnings.filterwarnings("ignore")
    cell = Cell(options.model, options.kind, options.image_size)
    measure(
        cell,
        lambda row: write_text(options.file, encode(row)),
        stock=not options.no_stock,
        graph=not options.no_graph,
    )
    return 0


def _loss(model: nn.Module, inputs: tuple[Tensor, ...], tasks: Sequence[Task]) -> Tensor:
    torch.manual_seed(SEED)  # the same dropout at every call
    output = model(*inputs)
    generator = torch.Generator().manual_seed(SEED)
    return torch.stack(
        [
            (tensor - torch.randn(tensor.shape, generator=generator)).square().mean()
            for task in tasks
            for tensor in task.tensors(output)
        ]
    ).sum()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
