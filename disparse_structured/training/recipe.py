"""What a training run is asked for, who may take part in it, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from disparse_structured.training.distillation import Distillation

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch with its number, from 0, and each task's mean loss over it."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Only ``epochs`` and ``lr`` have to be said.

    Args:
        epochs: at least 1.
        lr: the highest learning rate.
        weight_decay: of the default optimizer.
        optimizer: makes the optimizer from the list of trainable parameters; by default AdamW
            (Loshchilov and Hutter, ICLR 2019) with ``lr`` and ``weight_decay``.
        schedule: makes the learning-rate schedule from the optimizer and the number of steps in all; it is
            stepped after every batch but the last. By default one cycle (Smith and Topin, 2018) that peaks
            at ``lr``.
        precision: ``"32-true"`` computes in the model's own type. ``"bf16-mixed"`` and ``"16-mixed"`` run
            the model under ``torch.autocast`` (the second scales the loss, and needs CUDA); losses are
            always computed in the model's type.
        distillation: learn from a teacher as well; tasks may then lack a loss.
        patience: stop after this many epochs in a row without a lower validation loss.
        seed: for dropout, for the loader's shuffling and for whatever else draws random numbers.

    Raises:
        ValueError: a number is out of range, or the precision is unknown.
    """

    epochs: int
    lr: float
    weight_decay: float = 0.01
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None
    precision: Precision = "32-true"
    distillation: Distillation | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.lr > 0:
            raise ValueError(f"epochs={self.epochs} and lr={self.lr}: both must be above 0.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay}: it must not be negative.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience}: it counts epochs, so it must be at least 1.")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision={self.precision!r}: choose one of {', '.join(get_args(Precision))}.")

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer of ``parameters``."""
        if self.optimizer is not None:
            return self.optimizer(parameters)
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)

    def make_schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """The learning rate over ``steps`` batches."""
        if self.schedule is not None:
            return self.schedule(optimizer, steps)
        # One cycle needs two steps: with one alone its rate would be the low one of the warm-up.
        return OneCycleLR(optimizer, max_lr=self.lr, total_steps=max(steps, 2))


class Callback(Protocol):
    """Takes part in the training of the model that it was made for: a pruning regime, for example.

    It may change the values of weights and buffers, but no parameter's shape, and must decide alike in
    every process.

    ``state_dict`` holds tensors, numbers, strings, None, and dicts, lists and tuples of these, so that it
    can be read back without running code. A fresh companion that has loaded it goes on as the first would.
    """

    def step(self, optimizer: Optimizer) -> None:
        """Called after every optimizer step, in every process; the step's gradients are still there."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes from step to step, apart from the model's own tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned."""


@dataclass(frozen=True)
class TrainingFacts:
    """What a training run did.

    Args:
        epochs: begun and finished, fewer than asked for after an early stop.
        steps: batches trained on.
        losses: ``losses[task][epoch]`` is the mean over batches, not weighted. A task without a loss has
            its distillation loss here.
        validation: after each epoch the objective over the validation data: losses times weights, summed,
            and the distillation losses likewise.
        stopped_early: patience ran out.
        seconds: wall clock, over all the processes that the run was spread over in time.
        distillation: like ``losses``, the distance from the teacher.
    """

    epochs: int
    steps: int
    losses: Mapping[str, tuple[float, ...]]
    validation: tuple[float, ...]
    stopped_early: bool
    seconds: float = field(compare=False)
    distillation: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
