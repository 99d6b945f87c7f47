"""What happens in one cell: prune by a method, train, and measure."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.baselines import Method
from benchmarks.data import Loader
from benchmarks.harness.cell import described, digest
from benchmarks.harness.files import save_weights
from benchmarks.harness.machine import machine
from benchmarks.tables.branches import branched
from benchmarks.tables.cells import DENSE, Cell, Row, settings_hash
from benchmarks.tables.problems import Problem, problem
from benchmarks.tables.regimes import example, regime, rewound
from benchmarks.tables.settings import Setup
from disparse_structured.adapters.timm import MultiTask
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.plan import Plan
from disparse_structured.regimes import Regime
from disparse_structured.structure import count_macs, count_parameters
from disparse_structured.tasks import Task
from disparse_structured.training import Callback, Teacher, TrainingConfig, train


@dataclass(frozen=True)
class Bench:
    """What the cells of a run share: the setup, where dense weights are kept, and where networks compute."""

    setup: Setup
    cache: Path
    device: str = "cpu"


class Timed:
    """A callback whose steps are timed: they took ``seconds``."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self.seconds = 0.0

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        started = time.perf_counter()
        self._callback.step(optimizer)
        self.seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        return self._callback.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._callback.load_state_dict(state)


def description(method: Method | None) -> dict[str, Any]:
    """A method in the words that are hashed and kept in rows; the dense network has none."""
    if method is None:
        return {}
    ours: dict[str, Any] = {"compensated": True, "refit": "LeastSquares()"} if method.compensated else {}
    ours |= {"longer": True} if method.longer else {}
    ours |= {"teacher": method.teacher} if method.teacher else {}
    ours |= {} if method.early is None else {"early": method.early}
    return {
        "criterion": described(method.criterion),
        "arbiter": described(method.arbiter),
        "ranking": described(method.ranking),
        "joint": method.joint,
        "stages": method.stages,
        "rewind": method.rewind,
        "grow": None if method.grow is None else described(method.grow),
        **ours,
    }


def weights_file(bench: Bench, seed: int) -> Path:
    """Where the dense network of a seed is kept; settings that change the network change the name."""
    unused = ("finetune_epochs", "finetune_lr", "scored_batches", "every")
    used = {name: value for name, value in asdict(bench.setup).items() if name not in unused}
    key = digest(used, seed, torch.__version__)
    return bench.cache / f"tables-{bench.setup.dataset}-{key}.safetensors"


def run(bench: Bench, cell: Cell, method: Method | None) -> Row:
    """The row of one cell; ``method`` is None for the dense network."""
    wall, cpu = time.perf_counter(), time.process_time()
    row = _dense_row(bench, cell) if method is None else _pruned_row(bench, cell, method)
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return replace(row, seconds={**spent, **row.seconds}, **facts(bench, cell, method))


def facts(bench: Bench, cell: Cell, method: Method | None) -> dict[str, Any]:
    """What a row says about itself, whether or not the cell gave a result."""
    told = description(method)
    return {
        "settings": settings_hash(cell, bench.setup, told),
        "setup": asdict(bench.setup),
        "method": {**told, "source": method.source} if method else {},
        "machine": {**machine(), "device": bench.device},
    }


def tasks_of(setup: Setup, problem: Problem, model: MultiTask) -> tuple[Task, ...]:
    """The tasks of a network, with the setup's weights."""
    weights = dict(setup.weights)
    return tuple(replace(task, weight=weights.get(task.name, 1.0)) for task in model.tasks(problem.losses))


def dense(bench: Bench, seed: int) -> tuple[MultiTask, float]:
    """The trained dense network in eval mode, from the cache if it is there, and seconds of training."""
    data = problem(bench.setup)
    model = data.build(bench.setup, seed)
    file = weights_file(bench, seed)
    seconds = 0.0
    if file.is_file():
        model.load_state_dict(load_file(file))
        model.to(bench.device)
    else:
        model.to(bench.device)
        seconds = _train(bench, data, model, tasks_of(bench.setup, data, model), seed, full=True)
        save_weights(file, model)
    return model.eval(), seconds


def removal_hash(plan: Plan) -> str:
    """Identifies the units that a plan removes; nothing else of the plan enters it."""
    return digest(*sorted(plan.removals.items()))


def _dense_row(bench: Bench, cell: Cell) -> Row:
    assert cell.method == DENSE
    model, seconds = dense(bench, cell.seed)
    found = problem(bench.setup).evaluate(model)
    return Row(
        cell, "", macs=1.0, parameters=1.0, dense=found, after=found, delta_t=0.0, seconds={"train": seconds}
    )


def _pruned_row(bench: Bench, cell: Cell, method: Method) -> Row:
    setup, data = bench.setup, problem(bench.setup)
    reference, _ = dense(bench, cell.seed)
    inputs = example(setup, reference)
    found, macs = data.evaluate(reference), count_macs(reference, inputs)
    tasks = tasks_of(setup, data, reference)
    begun, note = _begun(bench, cell, method, reference, tasks, macs)
    before = data.evaluate(begun.model)
    watched = Timed(begun)
    full = cell.regime != "pretrained" or method.longer
    teacher = Teacher(reference, method.teacher) if method.teacher else None
    seconds = _train(bench, data, begun.model, tasks, cell.seed, full=full, callback=watched, teacher=teacher)
    pruned = begun.finish()
    finished = pruned.model
    if method.rewind:
        finished = rewound(data.build(setup, cell.seed).to(bench.device), begun, pruned.plan)
        before = data.evaluate(finished)
        seconds += _train(bench, data, finished, tasks, cell.seed, full=True)
    after = data.evaluate(finished)
    return Row(
        cell,
        "",
        macs=count_macs(finished, inputs) / macs,
        parameters=count_parameters(finished) / count_parameters(reference),
        dense=found,
        before=before,
        after=after,
        delta_before=data.delta_t(found, before),
        delta_t=data.delta_t(found, after),
        plan=removal_hash(pruned.plan),
        note=note,
        seconds={"train": seconds, "companion": watched.seconds},
    )


def _begun(
    bench: Bench, cell: Cell, method: Method, reference: MultiTask, tasks: tuple[Task, ...], macs: float
) -> tuple[Regime, str]:
    """The cell's regime before its training, and the row's note; ``reference`` is dense and has ``macs``."""
    setup, data = bench.setup, problem(bench.setup)
    budget = Budget(macs=round(1.0 - cell.removed, 6), round_to=1)
    model = reference if cell.regime == "pretrained" else data.build(setup, cell.seed).to(bench.device)
    scored = Loader(data.train, setup.batch_size, shuffle=True)
    note = ""
    if cell.trunk:
        model, note = branched(model, example(setup, reference), tasks, scored, setup, cell)
        # The copies cost more than the one trunk did; the budget stays that of the shared network.
        budget = Budget(macs=round((1.0 - cell.removed) * macs), round_to=1)
    return regime(setup, cell, method, model, tasks, scored, budget), note


def _train(
    bench: Bench,
    data: Problem,
    model: nn.Module,
    tasks: tuple[Task, ...],
    seed: int,
    *,
    full: bool,
    callback: Callback | None = None,
    teacher: Teacher | None = None,
) -> float:
    """Trains in place, ``full`` as the dense network or for the budget after pruning; gives seconds."""
    setup = bench.setup
    config = TrainingConfig(
        setup.epochs if full else setup.finetune_epochs,
        setup.lr if full else setup.finetune_lr,
        precision="bf16-mixed" if bench.device != "cpu" else "32-true",
        teacher=teacher,
        seed=seed,
    )
    loader = Loader(data.train, setup.batch_size, shuffle=True, augment=data.augment)
    return train(model, tasks, loader, config, callback=callback).seconds
