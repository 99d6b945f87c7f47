"""``disparse train``: training and pruning together, under one of the regimes, to a verified small model."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.cli import names, sources
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.data import as_batches, first_inputs, load_data
from disparse_structured.cli.delivery import Subject, deliver
from disparse_structured.cli.locking import first_process
from disparse_structured.cli.prune import budget
from disparse_structured.cli.usage import UsageError
from disparse_structured.data.batches import batches
from disparse_structured.files import made_folder
from disparse_structured.graph.batching import with_batch
from disparse_structured.pipeline import EXAMPLE_SAMPLES, Method
from disparse_structured.regimes import Dynamic, Early, Iterative, Pretrained, Regime, Static
from disparse_structured.regimes.scorings import COMPENSATED
from disparse_structured.training import Teacher, TrainingConfig, TrainingFacts, train

CHECKPOINT = "checkpoint.pt"

_EXCHANGES = 10
"""A dynamic run too short for RigL's 100 steps between exchanges makes at least this many."""


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome | None:
    """Builds the regime, trains (or resumes from the folder's checkpoint), saves and exports.

    Under ``torchrun`` all processes train, and the first one writes and reports.
    """
    made_folder(arguments.out)
    torch.manual_seed(arguments.seed)
    with screen.step("building the model"):
        subject = _subject(arguments)
    config = training_config(arguments, _teacher(arguments, subject.model))
    steps = arguments.epochs * _length(subject.data)
    with screen.step("reading the structure and scoring its units"):
        regime = _regime(arguments, subject, steps)
    validation = as_batches(load_data(arguments.validation, "--validation")) if arguments.validation else None
    facts = train(
        regime.model,
        subject.tasks,
        subject.data,
        config,
        callback=regime,
        validation=validation,
        checkpoint=arguments.out / CHECKPOINT,
        checkpoint_every=arguments.checkpoint_every,
        on_epoch=announcer(arguments.epochs, screen),
        progress=screen.progress,
    )
    with screen.step("pruning and verifying"):
        result = regime.finish()
    if not first_process():
        return None
    result.model.eval()
    entry = {"training": _entry(arguments, regime, facts)}
    return deliver(result, subject, arguments, screen, entry)


def _subject(arguments: argparse.Namespace) -> Subject:
    model = sources.load_model(arguments.model, arguments.weights)
    tasks = sources.load_tasks(arguments.tasks)
    return Subject(model, tasks, as_batches(load_data(arguments.data)))


def _teacher(arguments: argparse.Namespace, model: nn.Module) -> Teacher | None:
    if not arguments.teacher_weight:
        return None
    teacher = copy.deepcopy(model)
    if arguments.teacher:
        sources.load_weights(teacher, arguments.teacher)
    return Teacher(teacher, arguments.teacher_weight)


def training_config(arguments: argparse.Namespace, teacher: Teacher | None) -> TrainingConfig:
    """The training settings in the arguments.

    Raises:
        UsageError: a number is out of range.
    """
    try:
        return TrainingConfig(
            epochs=arguments.epochs,
            lr=arguments.lr,
            weight_decay=arguments.weight_decay,
            precision=arguments.precision,
            teacher=teacher,
            patience=arguments.patience,
            seed=arguments.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _regime(arguments: argparse.Namespace, subject: Subject, steps: int) -> Regime:
    shares = {name: getattr(arguments, name) for name in ("start", "until", "agreement", "fraction")}
    extra: dict[str, Any] = {name: share for name, share in shares.items() if share is not None}
    extra["batches"] = arguments.scoring_batches
    if arguments.regime == "dynamic":
        kind: Callable[..., Regime] = Dynamic
        every = arguments.every or max(1, min(100, steps // _EXCHANGES))
        # An exchange reads one batch, as in RigL; the first decision has nothing to improve on.
        extra |= {"steps": steps, "every": every}
        extra |= {"first_batches": arguments.scoring_batches, "batches": 1}
    elif arguments.regime == "early":
        kind = Early
        every = arguments.every or max(1, steps // arguments.epochs)
        extra |= {"steps": steps, "every": every}
    elif arguments.regime == "static":
        kind = Static
    else:
        kind = Pretrained
        extra["refit"] = names.refit(arguments.refit or "least-squares")
        stages = arguments.stages or 1
        if stages > 1 or arguments.start is not None:
            kind = Iterative
            extra |= {"stages": stages, "steps": steps}
    marked = functools.partial(with_batch, subject.model, batched=arguments.batched)
    return kind(
        subject.model,
        first_inputs(subject.model, subject.data, EXAMPLE_SAMPLES, marked),
        subject.tasks,
        subject.data,
        budget=budget(arguments),
        method=_method(arguments),
        seed=arguments.seed,
        entry_points=sources.load_entry_points(subject.model, arguments.entry_points),
        **extra,
    )


def _method(arguments: argparse.Namespace) -> Method:
    if (
        arguments.regime == "static"
        and arguments.criterion is None
        and arguments.method in (None, "disparse")
    ):
        return ds.DiSparse(**{"criterion": ds.criteria.SNIP(), **names.parts(arguments)})
    name = arguments.method or ("compensated" if arguments.regime == "pretrained" else "disparse")
    if name == "compensated":
        return dataclasses.replace(COMPENSATED, **names.parts(arguments))
    return names.method(arguments, name)


def _length(data: Iterable[Any]) -> int:
    try:
        return len(data)  # type: ignore[arg-type]  # TypeError is the answer of what has no length
    except TypeError:
        return sum(1 for _ in batches(data))


def announcer(epochs: int, screen: Screen) -> Callable[[int, Mapping[str, float]], None]:
    """A function that shows the losses of each epoch."""

    def announce(epoch: int, losses: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        screen.say(f"epoch {epoch + 1}/{epochs}  {shown}")

    return announce


def _entry(arguments: argparse.Namespace, regime: Regime, facts: TrainingFacts) -> dict[str, Any]:
    schedule = regime.schedule if isinstance(regime, Dynamic | Early | Iterative) else "once, before training"
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
