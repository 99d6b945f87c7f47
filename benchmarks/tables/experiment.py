"""What happens in one cell: prune by a method, train, and measure."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.baselines import Method
from benchmarks.data import Loader
from benchmarks.machine import machine
from benchmarks.tables.branches import branched
from benchmarks.tables.cells import DENSE, Cell, Row, described, settings_hash
from benchmarks.tables.problems import Problem, problem
from benchmarks.tables.settings import Setup
from disparse_structured.adapters.timm import MultiTask
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.plan import Plan
from disparse_structured.regimes import Dynamic, Iterative, Pretrained, Regime, Static
from disparse_structured.structure import analyse, count_macs, count_parameters
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Loss, Task
from disparse_structured.training import Callback, TrainingConfig, train


@dataclass(frozen=True)
class Bench:
    """What the cells of a run share: the setup, where dense weights are kept, where networks compute."""

    setup: Setup
    cache: Path
    device: str = "cpu"


class Timed:
    """A companion that is timed: ``seconds`` is what its steps took."""

    def __init__(self, companion: Callback) -> None:
        self._companion = companion
        self.seconds = 0.0

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        started = time.perf_counter()
        self._companion.step(optimizer)
        self.seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        return self._companion.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._companion.load_state_dict(state)


def description(method: Method | None) -> dict[str, Any]:
    """A method in words that go into hashes and files; the dense network has none."""
    if method is None:
        return {}
    return {
        "criterion": described(method.criterion),
        "arbiter": described(method.arbiter),
        "ranking": described(method.ranking),
        "joint": method.joint,
        "stages": method.stages,
        "rewind": method.rewind,
        "grow": None if method.grow is None else described(method.grow),
    }


def weights_file(bench: Bench, seed: int) -> Path:
    """Where the dense network of a seed is kept; settings that change it change the name."""
    untouched = ("finetune_epochs", "finetune_lr", "scored_batches", "every")
    used = {name: value for name, value in asdict(bench.setup).items() if name not in untouched}
    text = json.dumps([used, seed, torch.__version__], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    return bench.cache / f"tables-{bench.setup.dataset}-{key}.safetensors"


def run(bench: Bench, cell: Cell, method: Method | None) -> Row:
    """The row of one cell; :class:`Method` is None for the dense network."""
    wall, cpu = time.perf_counter(), time.process_time()
    row = _dense_row(bench, cell) if cell.method == DENSE else _pruned_row(bench, cell, method)
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return replace(row, seconds={**spent, **row.seconds}, **facts(bench, cell, method))


def facts(bench: Bench, cell: Cell, method: Method | None) -> dict[str, Any]:
    """What a row says about itself, whether or not the cell gives a result."""
    told = description(method)
    return {
        "settings": settings_hash(cell, bench.setup, told),
        "setup": asdict(bench.setup),
        "method": {**told, "source": method.source} if method else {},
        "machine": {**machine(), "device": bench.device},
    }


def tasks_of(setup: Setup, problem: Problem, model: MultiTask) -> tuple[Task, ...]:
    """The tasks of a network with the setup's weights."""
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
        file.parent.mkdir(parents=True, exist_ok=True)
        # Renamed only when complete: an interrupted run must not leave half a file under the right name.
        partial = file.with_suffix(f".partial-{seed}")
        save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, partial)
        partial.replace(file)
    return model.eval(), seconds


def _dense_row(bench: Bench, cell: Cell) -> Row:
    model, seconds = dense(bench, cell.seed)
    found = problem(bench.setup).evaluate(model)
    return Row(
        cell, "", macs=1.0, parameters=1.0, dense=found, after=found, delta_t=0.0, seconds={"train": seconds}
    )


def _pruned_row(bench: Bench, cell: Cell, method: Method | None) -> Row:
    assert method is not None
    setup, data = bench.setup, problem(bench.setup)
    reference, _ = dense(bench, cell.seed)
    example = _example(setup, reference)
    found, macs = data.evaluate(reference), count_macs(reference, example)
    budget = Budget(macs=round(1.0 - cell.removed, 6))
    model = reference if cell.regime == "pretrained" else data.build(setup, cell.seed).to(bench.device)
    note = ""
    if cell.trunk:
        scored = Loader(data.train, setup.batch_size, shuffle=True)
        model, note = branched(model, example, tasks_of(setup, data, model), scored, setup, cell)
        # The copies cost more than the one trunk did; the budget stays that of the shared network.
        budget = Budget(macs=round((1.0 - cell.removed) * macs))
    tasks = tasks_of(setup, data, model)
    regime = _regime(bench, cell, method, model, tasks, budget)
    before = data.evaluate(regime.model)
    watched = Timed(regime)
    full = cell.regime != "pretrained"
    seconds = _train(bench, data, regime.model, tasks, cell.seed, full=full, companion=watched)
    pruned = regime.finish()
    finished = pruned.model
    if method.rewind:
        finished = _rewound(bench, cell.seed, regime, pruned.plan)
        before = data.evaluate(finished)
        seconds += _train(bench, data, finished, tasks, cell.seed, full=True)
    after = data.evaluate(finished)
    return Row(
        cell,
        "",
        macs=count_macs(finished, example) / macs,
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


def removal_hash(plan: Plan) -> str:
    """16 hex digits over which units leave which group, and nothing else."""
    text = json.dumps(sorted(plan.removals.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _regime(
    bench: Bench,
    cell: Cell,
    method: Method,
    model: MultiTask,
    tasks: tuple[Task, ...],
    budget: Budget,
) -> Regime:
    setup, data = bench.setup, problem(bench.setup)
    voters = method.voters([_louder(task, cell) for task in tasks])
    scored = Loader(data.train, setup.batch_size, shuffle=True)
    shared: Mapping[str, Any] = {
        "budget": budget,
        "criterion": method.criterion,
        "arbiter": method.arbiter,
        "ranking": method.ranking,
        "seed": cell.seed,
    }
    example = _example(setup, model)
    steps = len(scored) * (setup.finetune_epochs if cell.regime == "pretrained" else setup.epochs)
    if cell.regime == "dynamic":
        # An example of the batches' own shape saves an export at every exchange.
        example = _example(setup, model, setup.batch_size)
        return Dynamic(
            model, example, voters, scored, steps=steps, every=setup.every, grow=method.grow, **shared
        )
    if cell.regime == "static":
        return Static(model, example, voters, scored, batches=setup.scored_batches, **shared)
    if method.stages == 1:
        return Pretrained(model, example, voters, scored, batches=setup.scored_batches, **shared)
    return Iterative(
        model,
        example,
        voters,
        scored,
        stages=method.stages,
        every=max(steps // method.stages, 1),
        batches=setup.scored_batches,
        **shared,
    )


def _rewound(bench: Bench, seed: int, regime: Regime, plan: Plan) -> nn.Module:
    """The plan on the network as it was initialised (the lottery ticket: Frankle and Carbin, ICLR 2019)."""
    model = problem(bench.setup).build(bench.setup, seed).to(bench.device)
    structure = analyse(model, regime.structure.example_inputs, regime.structure.task_objects)
    return apply(model, plan, structure).model


def _train(
    bench: Bench,
    data: Problem,
    model: nn.Module,
    tasks: tuple[Task, ...],
    seed: int,
    *,
    full: bool,
    companion: Callback | None = None,
) -> float:
    """Trains in place, ``full`` as the dense network or for the budget after pruning; gives seconds."""
    setup = bench.setup
    recipe = TrainingConfig(
        setup.epochs if full else setup.finetune_epochs,
        setup.lr if full else setup.finetune_lr,
        precision="bf16-mixed" if bench.device != "cpu" else "32-true",
        seed=seed,
    )
    loader = Loader(data.train, setup.batch_size, shuffle=True, augment=data.augment)
    return train(model, tasks, loader, recipe, callback=companion).seconds


def _example(setup: Setup, model: nn.Module, batch: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, 3, *setup.size, generator=generator).to(next(model.parameters()).device),)


def _louder(task: Task, cell: Cell) -> Task:
    if task.name != cell.loud or task.loss is None:
        return task
    return replace(task, loss=_scaled(task.loss, cell.factor))


def _scaled(loss: Loss, factor: float) -> Loss:
    return lambda output, batch: factor * loss(output, batch)
