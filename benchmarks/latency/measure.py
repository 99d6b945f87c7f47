"""One cell in this process, stage by stage; ``python -m benchmarks.latency.measure MODEL FILE``.

The row is written before every stage, so that what was found is not lost if the process is killed. The
process ends when its standard input is closed, so it does not outlive the process that started it.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness.files import write_text
from benchmarks.harness.limits import end_with_parent
from benchmarks.harness.machine import machine
from benchmarks.harness.row import encode
from benchmarks.harness.sweep import run_stage
from benchmarks.latency.cells import Cell, Row
from benchmarks.latency.networks import HELD_OUT, images, network
from benchmarks.latency.timing import Stopwatch, write
from benchmarks.latency.variants import (
    METHODS,
    OURS,
    ROUNDING,
    STOCK,
    VARIANTS,
    Remembering,
    matching,
    random_plans,
    stock_pruned,
)
from benchmarks.no_training.deviation import deviation
from disparse_structured.decision.budget import Budget
from disparse_structured.latency import Latency, LatencyModel, OnnxRuntime, Table
from disparse_structured.pipeline import Data, Problem, PruningResult, prune
from disparse_structured.pipeline.latency import EARLY
from disparse_structured.structure import Structure, analyse, count_macs
from disparse_structured.surgery.module import cut

SECONDS = {"try": 2.0, "plans": 4.0, "race": 10.0}
"""How long files are run in turn at least, by purpose."""

TOGETHER = 5
"""How many random plans are timed in turn."""

Facts = Mapping[str, Any]


class Run:
    """The stages of one cell; each returns fields of its :class:`Row`."""

    def __init__(self, cell: Cell, folder: Path, patience: float = 1.0) -> None:
        self._cell = cell
        self._seconds = {purpose: patience * seconds for purpose, seconds in SECONDS.items()}
        self._folder = folder
        self._method = Remembering(METHODS[cell.method]())
        self._racing: dict[str, Path] = {}

    @cached_property
    def _model(self) -> Any:
        return network(self._cell.model, self._cell.side)

    @cached_property
    def _images(self) -> Tensor:
        return images(self._model, self._cell.images)

    @cached_property
    def _held_out(self) -> Tensor:
        return images(self._model, HELD_OUT, seed=1)

    @cached_property
    def _structure(self) -> Structure:
        return analyse(self._model, self._images[:2])

    @cached_property
    def _problem(self) -> Problem:
        given = Data.of(self._model, self._images, marked=self._structure.marked)
        return Problem(
            self._model,
            self._structure,
            given.batches,
            lambda: given.calibration,
            Budget(macs=self._cell.share),
        )

    @cached_property
    def _latency(self) -> Latency:
        runtime = OnnxRuntime(threads=self._cell.threads, batch=self._cell.batch)
        return Latency(self._model, runtime, Table(runtime.facts, self._folder))

    @cached_property
    def _predicted(self) -> LatencyModel:
        return self._latency.on(self._structure)

    @cached_property
    def _watch(self) -> Stopwatch:
        runtime = self._latency.runtime
        assert isinstance(runtime, OnnxRuntime)
        inputs = runtime.inputs(self._structure.example_inputs, "batch")
        dense = self._folder / "dense.onnx"
        write(dense, self._model, inputs)
        return Stopwatch(runtime, inputs, dense, self._folder)

    def build(self) -> Facts:
        return {"macs": self._dense_macs}

    def structure(self) -> Facts:
        assert self._structure.units
        return {}

    def scores(self) -> Facts:
        self._method.decide(self._problem)
        return {}

    def export(self) -> Facts:
        file, inputs = self._latency.dense_file(self._structure)
        times = self._watch.times([file], self._seconds["try"])
        low = np.quantile(times, EARLY, axis=0)
        assert [each.shape for each in inputs] == [each.shape for each in self._watch.inputs]
        return {"exporter": float(low[0] / low[1])}

    def table(self) -> Facts:
        dense = self._predicted.dense
        assert self._latency.table is not None
        return {"dense_ms": dense, "measured": len(self._latency.table)}

    def plans(self) -> Facts:
        keeps = list(random_plans(self._structure, self._cell.plans))
        files = {
            str(number): self._watch.write(f"plan{number}", cut(self._model, self._structure, keep))
            for number, keep in enumerate(keeps)
        }
        shares: dict[str, dict[str, float]] = {}
        for start in range(0, len(keeps), TOGETHER):
            some = dict(list(files.items())[start : start + TOGETHER])
            shares |= self._watch.shares(some, self._seconds["plans"])
        for file in files.values():
            file.unlink()
        macs, predicted = self._structure.cost.macs, self._predicted
        return {
            "plans": [
                {
                    **shares[str(number)],
                    "macs": macs.total(keep) / macs.dense,
                    "predicted": predicted.predict(keep) / predicted.dense,
                }
                for number, keep in enumerate(keeps)
            ]
        }

    def ours(self) -> Facts:
        result = self._pruned(Budget(self._cell.share, of=self._latency), verify=True)
        speed = result.report.speed
        assert speed is not None
        self._ours = self._point(OURS, result.model)
        return {
            "asked": speed.asked,
            "predicted": speed.predicted,
            "reached": speed.measured,
            "exports": speed.exports,
        }

    def budgets(self) -> Facts:
        points = {}
        for name in VARIANTS[1:]:
            model = self._made(name, self._at(name))
            points[name] = self._point(name, model, deviates=False)
        ours = {OURS: self._ours} if OURS in self._racing else {}
        return {"points": self._raced({**ours, **points})}

    def equal(self) -> Facts:
        wanted = self._share(self._racing[OURS])
        found = {OURS: self._ours}
        for name in VARIANTS[1:]:
            predicted = (lambda share: share) if name == STOCK else functools.partial(self._expected, name)
            best = matching(wanted, predicted, functools.partial(self._tried, name))
            if name == STOCK:
                model = self._made(name, best.share)
            else:
                model = self._pruned(Budget(macs=best.share, round_to=ROUNDING[name])).model
            found[name] = self._point(name, model)
        return {"equal": self._raced(found)}

    def _pruned(self, budget: Budget, verify: bool = False) -> PruningResult:
        return prune(
            self._model,
            self._images,
            budget=budget,
            method=self._method,
            structure=self._structure,
            verify=verify,
        )

    @functools.cache  # noqa: B019  (there is one run in a process)
    def _kept(self, name: str, share: float) -> Tensor:
        budget = Budget(macs=share, round_to=ROUNDING[name])
        return self._method.decide(replace(self._problem, budget=budget))[0].keep

    def _expected(self, name: str, share: float) -> float:
        return self._predicted.predict(self._kept(name, share)) / self._predicted.dense

    def _at(self, name: str) -> float:
        """The share to ask of a variant, so that the cell's share of the MACs is left."""
        share = self._cell.share
        if name != STOCK:
            return share
        return matching(share, lambda asked: asked, lambda asked: self._macs(self._made(name, asked))).share

    def _macs(self, model: nn.Module) -> float:
        return count_macs(model, (self._images[:1],)) / self._dense_macs

    @cached_property
    def _dense_macs(self) -> float:
        return float(count_macs(self._model, (self._images[:1],)))

    def _made(self, name: str, share: float) -> nn.Module:
        """The network of a variant, without a refit, which changes no time."""
        if name == STOCK:
            return stock_pruned(self._model, (self._images[:1],), share)
        return cut(self._model, self._structure, self._kept(name, share))

    def _tried(self, name: str, share: float) -> float:
        return self._share(self._watch.write("try", self._made(name, share)))

    def _share(self, file: Path) -> float:
        return self._watch.shares({"file": file}, self._seconds["try"])["file"]["share"]

    def _point(self, name: str, model: nn.Module, *, deviates: bool = True) -> dict[str, float]:
        """What can be said of a network before it is timed; its file is written."""
        self._racing[name] = self._watch.write(name, model)
        found = {"macs": self._macs(model)}
        if deviates:
            moved = deviation(self._model, model, self._held_out, self._structure.task_objects).values()
            found |= {"worst": max(moved), "mean": sum(moved) / len(moved)}
        return found

    def _raced(self, points: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        shares = self._watch.shares({name: self._racing[name] for name in points}, self._seconds["race"])
        return {name: {**point, **shares[name]} for name, point in points.items()}


STAGES: Mapping[str, tuple[Callable[[Run], Facts], str]] = {
    "build": (Run.build, ""),
    "structure": (Run.structure, "build"),
    "scores": (Run.scores, "structure"),
    "export": (Run.export, "structure"),
    "table": (Run.table, "export"),
    "ours": (Run.ours, "table"),
    "budgets": (Run.budgets, "table"),
    "equal": (Run.equal, "ours"),
    "plans": (Run.plans, "table"),
}
"""What each stage does, and the stage that must have ended before it."""


def measure(cell: Cell, keep: Callable[[Row], None], *, patience: float = 1.0) -> Row:
    """The row of ``cell``; ``keep`` gets the row so far before every stage, and the whole row at the end.

    With less ``patience``, files are run less often.
    """
    row = Row(cell, settings=cell.settings, machine=machine())
    stages = {name: stage for name, stage in STAGES.items() if cell.first or name != "plans"}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(cell, Path(folder), patience)
        for name, (work, needed) in stages.items():
            if not needed or needed in row.seconds:
                row = run_stage(row, name, functools.partial(work, run), keep)
    row = replace(row, stage="")
    keep(row)
    return row


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency.measure", description=__doc__)
    parser.add_argument("model", help="a network of this benchmark, or a name in timm")
    parser.add_argument("file", type=Path, help="where to write the row")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--batch", type=int, default=1, help="images in a batch")
    parser.add_argument("--images", type=int, default=16, help="that networks are pruned on")
    parser.add_argument("--method", choices=METHODS, default="disparse", help="that scores")
    parser.add_argument("--share", type=float, default=0.5, help="of the time or of the MACs")
    parser.add_argument("--plans", type=int, default=20, help="random plans")
    parser.add_argument("--side", type=int, help="of the images in pixels")
    options = parser.parse_args(arguments)
    end_with_parent()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    file = options.__dict__.pop("file")
    measure(Cell(**vars(options)), lambda row: write_text(file, encode(row)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
