"""Runs cells network by network; what is finished is kept and not run again."""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks.data import Loader
from benchmarks.harness.machine import machine
from benchmarks.harness.row import reason
from benchmarks.harness.runner import aloud, processes, remaining, run_all
from benchmarks.no_training.bench import Bench
from benchmarks.no_training.cells import Cell, Row, Workspace
from benchmarks.no_training.deviation import distance
from benchmarks.no_training.methods import METHODS
from benchmarks.tables.cells import Figures
from benchmarks.tables.problems import Problem
from disparse_structured.structure import count_macs, count_parameters
from disparse_structured.training import TrainingConfig, train


def work(cells: Sequence[Cell], space: Workspace, jobs: int = 1, again: bool = False) -> int:
    """Runs the cells that are not finished, or all ``again``; returns how many were run.

    A cell that raises leaves a row with the error. The run can be interrupted at any time and repeated.

    Args:
        cells: run in this order, except that those of one network, seed and set of images stay together.
        space: where.
        jobs: processes of one torch thread each; with 1, everything runs in this process.
        again: also run what is finished.

    Raises:
        DataError: data is missing.
        RowError: the shelf is damaged.
    """
    todo = remaining(cells, space.finished().__contains__, again)
    aloud(f"{len(todo)} of {len(cells)} cells to run, {jobs} at a time")
    together: dict[tuple[str, int, int], list[Cell]] = defaultdict(list)
    for cell in todo:
        together[cell.network, cell.seed, cell.inputs].append(cell)
    with processes(min(jobs, max(1, len(together)))) as pool:
        run_all(pool, partial(several, space), together.values(), lambda _: None)
    return len(todo)


def several(space: Workspace, cells: Sequence[Cell]) -> None:
    """Runs cells of one network, seed and set of images, and keeps their rows."""
    first = cells[0]
    bench = Bench(space.networks[first.network], first.seed, first.inputs, space.cache)
    dense = observed(bench.model, bench.problem)
    for cell in cells:
        started = time.perf_counter()
        try:
            row = replace(run(bench, cell, dense), **space.facts(cell))
            told = f"deviation {row.mean_deviation:.3f}, ΔT {row.delta_t:+.1f}"
        except Exception as error:
            traceback.print_exc()
            row = Row(cell, error=reason(error), machine=machine(), **space.facts(cell))
            told = f"FAILED: {row.error}"
        space.shelf.put(row)
        aloud(f"{cell.label}: {told}  ({time.perf_counter() - started:.0f} s)")


@dataclass(frozen=True, eq=False)
class Observed:
    """A network on the samples that are reported on: its figures, and its outputs batch by batch."""

    figures: Figures
    outputs: Sequence[Any]


class _Recorder(nn.Module):
    """Calls ``model`` and keeps its outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs: list[Any] = []

    def forward(self, image: Tensor) -> Any:
        self.outputs.append(self.model(image))
        return self.outputs[-1]


def observed(model: nn.Module, problem: Problem) -> Observed:
    """One pass over the samples that are reported on."""
    recorder = _Recorder(model)
    return Observed(problem.evaluate(recorder), recorder.outputs)


def run(bench: Bench, cell: Cell, dense: Observed) -> Row:
    """The row of one cell, without its settings; ``dense`` is the network that was not pruned."""
    structure = bench.structure  # analyzed before the clock starts: all methods share it
    assert structure.units
    bench.saved()
    started = time.perf_counter()
    pruned = METHODS[cell.method].prune(bench, cell.macs)
    if cell.epochs:
        finetune(bench, pruned, cell.epochs)
    seconds = time.perf_counter() - started + bench.saved()
    example = bench.model.example_inputs(1)
    found = observed(pruned, bench.problem)
    return Row(
        cell,
        macs=count_macs(pruned, example) / count_macs(bench.model, example),
        parameters=count_parameters(pruned) / count_parameters(bench.model),
        deviation=distance(zip(found.outputs, dense.outputs, strict=True), bench.tasks),
        dense=dense.figures,
        pruned=found.figures,
        delta_t=bench.problem.delta_t(dense.figures, found.figures),
        deltas=deltas(bench.problem, dense.figures, found.figures),
        seconds=seconds,
        machine=machine(),
    )


def finetune(bench: Bench, model: nn.Module, epochs: int) -> None:
    """Trains ``model`` in place on all training samples, as the tables do after pruning."""
    setup, data = bench.network.setup, bench.problem
    loader = Loader(data.train, setup.batch_size, shuffle=True, augment=data.augment)
    train(model, bench.tasks, loader, TrainingConfig(epochs, setup.finetune_lr, seed=bench.seed))


def deltas(problem: Problem, dense: Figures, pruned: Figures) -> dict[str, float]:
    """The relative change of each task's figure in percent, higher is better; ΔT is their mean."""
    found = {}
    for figure in problem.figures:
        before, after = (each[figure.task][figure.metric] for each in (dense, pruned))
        found[figure.task] = (1 if figure.higher_is_better else -1) * 100 * (after - before) / before
    return found
