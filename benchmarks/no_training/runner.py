"""Works off cells, network by network; what is finished stays, and is not done again."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from benchmarks.data import Loader
from benchmarks.machine import machine
from benchmarks.no_training.bench import Bench
from benchmarks.no_training.cells import Cell, Lab, Row
from benchmarks.no_training.deviation import distance
from benchmarks.no_training.methods import METHODS
from benchmarks.tables.cells import Figures
from benchmarks.tables.problems import Problem
from benchmarks.tables.runner import aloud, prepare
from disparse_structured.structure import count_macs, count_parameters
from disparse_structured.training import TrainingConfig, train


def work(cells: Sequence[Cell], lab: Lab, jobs: int = 1, again: bool = False) -> int:
    """Runs what is not done, or all ``again``; how many cells were run.

    A cell that raises leaves a row with the error. May be killed at any time and called again.

    Args:
        cells: in this order, but those of one network, seed and set of images after one another.
        lab: where.
        jobs: processes of one torch thread; with 1, everything runs in this one.
        again: also what is done.
    """
    todo: dict[tuple[str, int, int], list[Cell]] = defaultdict(list)
    for cell in dict.fromkeys(cells):
        if again or not lab.is_done(cell):
            todo[cell.network, cell.seed, cell.inputs].append(cell)
    total = sum(map(len, todo.values()))
    aloud(f"{total} of {len(cells)} cells to run, {jobs} at a time")
    if jobs == 1 or len(todo) < 2:
        for some in todo.values():
            several(some, lab)
        return total
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), prepare) as pool:
        try:
            for future in as_completed([pool.submit(several, some, lab) for some in todo.values()]):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return total


def several(cells: Sequence[Cell], lab: Lab) -> None:
    """Runs cells of one network, seed and set of images, and keeps their rows."""
    first = cells[0]
    bench = Bench(lab.networks[first.network], first.seed, first.inputs, lab.cache)
    dense = observed(bench.model, bench.problem)
    for cell in cells:
        started = time.perf_counter()
        try:
            row = replace(run(bench, cell, dense), **lab.facts(cell))
            told = f"deviation {row.mean_deviation:.3f}, ΔT {row.delta_t:+.1f}"
        except Exception as error:
            traceback.print_exc()
            row = Row(cell, error=f"{type(error).__name__}: {error}", machine=machine(), **lab.facts(cell))
            told = f"FAILED: {row.error}"
        row.write(lab.folder)
        aloud(f"{cell.file.with_suffix('')}: {told}  ({time.perf_counter() - started:.0f} s)")


@dataclass(frozen=True, eq=False)
class Observed:
    """A network on the samples that are reported on: its figures, and its outputs batch by batch."""

    figures: Figures
    outputs: Sequence[Any]


class _Recorder(nn.Module):
    """``model``, whose outputs are remembered."""

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
    structure = bench.structure  # read once for all methods: no method's own time
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
    """Relative change of each task's figure in percent, up is good; ΔT is their mean."""
    found = {}
    for figure in problem.figures:
        before, after = (each[figure.task][figure.metric] for each in (dense, pruned))
        found[figure.task] = (1 if figure.higher_is_better else -1) * 100 * (after - before) / before
    return found
