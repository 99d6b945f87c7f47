"""The calls of the library: the regime that a cell prunes by, and a plan applied to untrained weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines import Method
from benchmarks.data import Loader
from benchmarks.tables.cells import Cell
from benchmarks.tables.settings import Setup
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.plan import Plan
from disparse_structured.pipeline import DiSparse
from disparse_structured.refit import LeastSquares
from disparse_structured.regimes import Dynamic, Early, Iterative, Pretrained, Regime, Static
from disparse_structured.regimes.scorings import COMPENSATED
from disparse_structured.structure import analyse
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Loss, Task

SCHEDULES = {"pretrained": (0.0, 0.4), "dynamic": (0.2, 0.5)}
"""When the first and the last stage of compensated pruning run, as shares of the training."""


def regime(
    setup: Setup,
    cell: Cell,
    method: Method,
    model: nn.Module,
    tasks: Sequence[Task],
    scored: Loader,
    budget: Budget,
) -> Regime:
    """The regime of a cell; ``model`` is what it prunes, ``scored`` the data that saliency is measured on."""
    voters = method.voters([_louder(task, cell) for task in tasks])
    steps = len(scored) * (setup.finetune_epochs if cell.regime == "pretrained" else setup.epochs)
    rules = {"criterion": method.criterion, "arbiter": method.arbiter, "ranking": method.ranking}
    shared: dict[str, Any] = {
        "budget": budget,
        "method": replace(COMPENSATED, **rules) if method.compensated else DiSparse(**rules),
        "seed": cell.seed,
    }
    inputs, batches = example(setup, model), setup.scored_batches
    if method.early is not None:
        shared |= {"steps": steps, "every": len(scored), "agreement": method.early}
        return Early(model, inputs, voters, scored, batches=batches, **shared)
    if cell.regime == "static":
        return Static(model, inputs, voters, scored, batches=batches, **shared)
    if cell.regime == "dynamic" and not method.compensated:
        return Dynamic(
            model, inputs, voters, scored, steps=steps, every=setup.every, grow=method.grow, **shared
        )
    shared |= {"refit": LeastSquares() if method.compensated else None, "batches": batches}
    if cell.regime == "pretrained" and method.stages == 1:
        return Pretrained(model, inputs, voters, scored, **shared)
    evenly = 0.0, (method.stages - 1) / method.stages
    start, until = SCHEDULES[cell.regime] if method.compensated else evenly
    return Iterative(
        model, inputs, voters, scored, stages=method.stages, steps=steps, start=start, until=until, **shared
    )


def rewound(model: nn.Module, finished: Regime, plan: Plan) -> nn.Module:
    """``plan`` on ``model``, as it was initialized (the lottery ticket: Frankle and Carbin, ICLR 2019)."""
    known = finished.structure
    return apply(model, plan, analyse(model, known.example_inputs, known.task_objects)).model


def example(setup: Setup, model: nn.Module) -> tuple[Tensor, ...]:
    """Normal random images, the same at every call, on the device of ``model``."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(1, 3, *setup.size, generator=generator).to(next(model.parameters()).device),)


def _louder(task: Task, cell: Cell) -> Task:
    if task.name != cell.loud or task.loss is None:
        return task
    return replace(task, loss=_scaled(task.loss, cell.factor))


def _scaled(loss: Loss, factor: float) -> Loss:
    return lambda output, batch: factor * loss(output, batch)
