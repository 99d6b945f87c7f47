"""``disparse train``: pruning and training together, under one of the regimes, to a proven small model."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from disparse_structured.cli import names, sources
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.delivery import Subject, deliver, subject, writable
from disparse_structured.cli.prune import budget
from disparse_structured.cli.usage import UsageError
from disparse_structured.data.batches import batches
from disparse_structured.regimes import Dynamic, Iterative, Pretrained, Regime, Static
from disparse_structured.training import Distillation, TrainingConfig, TrainingFacts, train

CHECKPOINT = "checkpoint.pt"
REGIMES = ("pretrained", "static", "dynamic")

_EXCHANGES = 10
"""A dynamic run too short for RigL's 100 steps between exchanges makes at least this many."""


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome | None:
    """Builds the regime, trains (or goes on from the folder's checkpoint), saves and exports.

    Under ``torchrun`` all processes train, and the first one writes and reports.
    """
    _check(arguments)
    folder = writable(Path(arguments.out))
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    with screen.step("building the model"):
        given = subject(arguments)
    recipe = _recipe(arguments, given)
    steps = arguments.epochs * _length(given.data)
    with screen.step("reading the structure and voting"):
        regime = _regime(arguments, given, steps)
    validation = sources.load_data(arguments.validation, None) if arguments.validation else None
    facts = train(
        regime.model,
        given.tasks,
        given.data,
        recipe,
        callback=regime,
        validation=validation,
        checkpoint=folder / CHECKPOINT,
        checkpoint_every=arguments.checkpoint_every,
        on_epoch=_announcer(arguments.epochs, screen),
        progress=screen.interactive,
    )
    with screen.step("cutting and proving"):
        pruned = regime.finish()
    if int(os.environ.get("RANK", "0")):
        return None
    pruned.model.eval()
    entry = {"training": _entry(arguments, regime, facts)}
    return deliver(given, pruned, folder, arguments, screen, entry)


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.data:
        raise UsageError("there is nothing to train on. Give --data.")
    if arguments.stages != 1 and arguments.regime != "pretrained":
        raise UsageError(f"--stages belongs to --regime pretrained, not to {arguments.regime}.")
    for option in ("stages", "every", "scoring_batches", "checkpoint_every"):
        count = getattr(arguments, option)
        if count is not None and count < 1:
            raise UsageError(f"--{option.replace('_', '-')} {count}: there is at least 1.")
    if not (0 < arguments.fraction < 1 and 0 < arguments.until <= 1):
        raise UsageError(
            f"--fraction {arguments.fraction:g}, --until {arguments.until:g}: shares of the budget, below 1, "
            "and of all steps, at most 1; both above 0."
        )
    if arguments.distill is not None and not arguments.distill > 0:
        raise UsageError(f"--distill {arguments.distill:g}: the weight must be above 0.")
    if arguments.teacher and not arguments.distill:
        raise UsageError("--teacher names the weights to distil from. Give --distill WEIGHT too.")
    if arguments.distill and not arguments.teacher and arguments.regime != "pretrained":
        raise UsageError(
            f"--distill needs a trained network, and --regime {arguments.regime} begins with an untrained "
            "one. Give its weights by --teacher FILE."
        )
    if arguments.patience is not None and arguments.stages > 1:
        raise UsageError(
            "--patience brings back the best epoch, which may lie before the last stage. Fine-tune after "
            "--stages with a run of its own."
        )
    if arguments.patience is not None and not arguments.validation:
        raise UsageError("--patience needs data to judge by. Give --validation.")


def _recipe(arguments: argparse.Namespace, given: Subject) -> TrainingConfig:
    distillation = None
    if arguments.distill:
        teacher = copy.deepcopy(given.model)
        if arguments.teacher:
            sources.load_weights(teacher, Path(arguments.teacher))
        distillation = Distillation(teacher, arguments.distill)
    try:
        return TrainingConfig(
            epochs=arguments.epochs,
            lr=arguments.lr,
            weight_decay=arguments.weight_decay,
            precision=arguments.precision,
            distillation=distillation,
            patience=arguments.patience,
            seed=arguments.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _regime(arguments: argparse.Namespace, given: Subject, steps: int) -> Regime:
    if arguments.regime == "dynamic":
        kind: Callable[..., Regime] = Dynamic
        every = arguments.every or max(1, min(100, steps // _EXCHANGES))
        extra: dict[str, Any] = {"steps": steps, "every": every}
        # An exchange reads one batch, as in RigL; the first decision has nothing to improve on.
        extra |= {"first_batches": arguments.scoring_batches, "batches": 1}
        extra |= {"fraction": arguments.fraction, "until": arguments.until}
    elif arguments.regime == "static":
        kind, extra = Static, {}
    elif arguments.stages > 1:
        # The last stage leaves as much training as each of the others.
        kind = Iterative
        extra = {"stages": arguments.stages, "every": arguments.every or max(1, steps // arguments.stages)}
    else:
        kind, extra = Pretrained, {}
    if arguments.criterion:
        extra["criterion"] = names.criterion(arguments.criterion)
    return kind(
        given.model,
        given.example,
        given.tasks,
        given.data,
        budget=budget(arguments),
        arbiter=names.arbiter(arguments.arbiter),
        ranking=names.ranking(arguments.ranking),
        seed=arguments.seed,
        **{"batches": arguments.scoring_batches, **extra},
    )


def _length(data: Iterable[Any]) -> int:
    try:
        return len(data)  # type: ignore[arg-type]  # TypeError is the answer of what has no length
    except TypeError:
        return sum(1 for _ in batches(data))


def _announcer(epochs: int, screen: Screen) -> Callable[[int, Mapping[str, float]], None]:
    def announce(epoch: int, losses: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        screen.say(f"epoch {epoch + 1}/{epochs}  {shown}")

    return announce


def _entry(arguments: argparse.Namespace, regime: Regime, facts: TrainingFacts) -> dict[str, Any]:
    schedule = regime.schedule if isinstance(regime, Dynamic | Iterative) else "once, before training"
    return {
        "regime": arguments.regime,
        "schedule": schedule,
        "lr": arguments.lr,
        "precision": arguments.precision,
        "trained_parameters": _size(regime.model),
        **dataclasses.asdict(facts),
    }


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
