"""A training run's settings, its callback protocol and its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from disparse_structured.checks import check_counts, check_positive, check_seed, is_number, shown
from disparse_structured.errors import OptionError
from disparse_structured.training.teacher import Teacher

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch with its number, from 0, and each task's mean loss over it."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Only ``epochs`` and ``lr`` are required.

    Args:
        epochs: at least 1.
        lr: the highest learning rate.
        weight_decay: weight decay of the default optimizer.
        optimizer: makes the optimizer from the list of trainable parameters; by default AdamW
            (Loshchilov and Hutter, ICLR 2019) with ``lr`` and ``weight_decay``.
        schedule: makes the learning-rate schedule from the optimizer and the total number of steps; it is
            stepped after every batch but the last. By default one cycle (Smith and Topin, 2018) that peaks
            at ``lr``.
        precision: ``"32-true"`` computes in the model's own type. ``"bf16-mixed"`` and ``"16-mixed"`` run
            the model under ``torch.autocast`` (the second scales the loss, and needs CUDA); losses are
            always computed in the model's type.
        teacher: learn from another model as well (distillation); tasks may then lack a loss.
        patience: stop after this many epochs in a row without a lower validation loss.
        seed: random seed for dropout, the loader's shuffling and all other random draws.

    Raises:
        OptionError: a number is out of range, or the precision is unknown.
    """

    epochs: int
    lr: float
    weight_decay: float = 0.01
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None
    precision: Precision = "32-true"
    teacher: Teacher | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(epochs=self.epochs)
        check_positive(lr=self.lr)
        check_seed(self.seed)
        if not is_number(self.weight_decay) or self.weight_decay < 0:
            raise OptionError(f"weight_decay={shown(self.weight_decay)} must not be negative.")
        if self.patience is not None:
            check_counts(patience=self.patience)
        if self.precision not in get_args(Precision):
            raise OptionError(
                f"precision={shown(self.precision)} must be one of {', '.join(get_args(Precision))}."
            )

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer for ``parameters``."""
        if self.optimizer is not None:
            return self.optimizer(parameters)
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)

    def make_schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """The learning-rate schedule for ``steps`` batches."""
        if self.schedule is not None:
            return self.schedule(optimizer, steps)
        # One cycle needs two steps: a single step would use the low rate of the warm-up.
        return OneCycleLR(optimizer, max_lr=self.lr, total_steps=max(steps, 2))


class Callback(Protocol):
    """Called after every step while the model that it was made for is trained, such as a pruning regime.

    It may change the values of weights and buffers, but not the shape of a parameter. It must decide alike
    in every process.

    ``state_dict`` holds tensors, numbers, strings, None, and dicts, lists and tuples of these, so that it
    can be read back without executing code. A fresh callback that has loaded it continues as the first one
    would have.
    """

    def step(self, optimizer: Optimizer) -> None:
        """Called after every optimizer step, in every process; the step's gradients are still available."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from step to step, except the model's own tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""


@dataclass(frozen=True)
class TrainingFacts:
    """The record of a training run.

    Args:
        epochs: epochs completed; fewer than requested after an early stop.
        steps: batches trained on.
        losses: ``losses[task][epoch]`` is the unweighted mean over batches. A task without a loss has its
            distillation loss here.
        validation: the objective on the validation data after each epoch: the weighted sum of the losses
            and the distillation losses.
        stopped_early: whether patience ran out.
        seconds: wall-clock time, including that before a resume.
        distillation: like ``losses``, the distance from the teacher.
    """

    epochs: int
    steps: int
    losses: Mapping[str, tuple[float, ...]]
    validation: tuple[float, ...]
    stopped_early: bool
    seconds: float = field(compare=False)
    distillation: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
