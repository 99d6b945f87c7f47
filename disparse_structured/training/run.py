"""A training run: its state, one step, one validation pass, and what a checkpoint holds."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from disparse_structured.data.batches import ToInputs, to_device
from disparse_structured.data.modes import eval_mode
from disparse_structured.errors import GradientError, TaskError
from disparse_structured.training.checkpoint import Checkpoint
from disparse_structured.training.config import Callback, OnEpoch, TrainingConfig, TrainingFacts
from disparse_structured.training.distributed import launch, same_buffers, share
from disparse_structured.training.objective import NoAutocast, TrainingObjective
from disparse_structured.training.progress import Shown
from disparse_structured.training.random_streams import read_epoch, reseed
from disparse_structured.training.snapshot import Weights, put, take

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass
class _State:
    """The progress of a run. All of it is in the checkpoint."""

    epoch: int = 0
    batch: int = 0  # within the epoch
    steps: int = 0
    sums: list[float] = field(default_factory=list)  # of each term over the epoch's batches
    history: list[list[float]] = field(default_factory=list)  # [epoch][term]
    validation: list[float] = field(default_factory=list)
    best: float = math.inf
    waited: int = 0  # epochs since the best
    stopped: bool = False
    finished: bool = False
    seconds: float = 0.0


class TrainingRun:
    """One run in one process, on Lightning Fabric; resumes from ``file`` if it exists."""

    def __init__(
        self,
        objective: TrainingObjective,
        config: TrainingConfig,
        steps_per_epoch: int,
        callback: Callback | None,
        to_inputs: ToInputs | None,
        file: Checkpoint | None,
    ) -> None:
        self._started = time.perf_counter()
        self._model, self._objective, self._config = objective.model, objective, config
        self._callback, self._inputs, self._file = callback, to_inputs, file
        first = next(self._model.parameters())
        self._fabric: Fabric = launch(first.device, config.precision)
        self._rank, self._count = self._fabric.global_rank, self._fabric.world_size
        if self._count > 1:
            self._model.to(self._fabric.device)
        self._device, self._dtype = next(self._model.parameters()).device, first.dtype
        trainable = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = config.make_optimizer(trainable)
        self._steps = config.epochs * steps_per_epoch
        self._schedule = config.make_schedule(self._optimizer, self._steps)
        self._state = _State()
        self._best: tuple[Weights, dict[str, Any] | None] | None = None
        self._resume()
        self._trained, self._stepper = self._fabric.setup(objective, self._optimizer, move_to_device=False)
        if self._count > 1:
            same_buffers(self._model)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self._rank == 0

    def train(
        self,
        loader: Iterable[Any],
        validation: Iterable[Any] | None,
        checkpoint_every: int,
        on_epoch: OnEpoch | None,
        shown: Shown,
    ) -> None:
        """Trains for all epochs, or until patience runs out."""
        state = self._state
        while state.epoch < self._config.epochs and not state.stopped:
            for batch in self._batches(loader):
                self._step(batch)
                shown(state.epoch, state.steps, self._named([value / state.batch for value in state.sums]))
                if state.steps % checkpoint_every == 0:
                    self._save()
            state.history.append([value / state.batch for value in state.sums])
            if validation is not None:
                self._track_best(self._validate(validation))
            if on_epoch is not None and self.first:
                on_epoch(state.epoch, self._named(state.history[-1]))
            state.epoch, state.batch, state.sums = state.epoch + 1, 0, []
            self._save()
        if not state.finished:
            if self._best is not None:
                put(self._model, self._best[0])
                if self._callback is not None and self._best[1] is not None:
                    self._callback.load_state_dict(copy.deepcopy(self._best[1]))
            state.finished = True
            self._best = None
            self._save()
        # The first process to return may read the file at once.
        self._fabric.barrier()

    def facts(self) -> TrainingFacts:
        """The record of the run so far, at least one epoch."""
        state = self._state
        epochs = [self._named(means) for means in state.history]
        distilled = [self._named(means, distill=True) for means in state.history]
        return TrainingFacts(
            epochs=state.epoch,
            steps=state.steps,
            losses={name: tuple(means[name] for means in epochs) for name in epochs[0]},
            validation=tuple(state.validation),
            stopped_early=state.stopped,
            seconds=self._seconds(),
            distillation={name: tuple(means[name] for means in distilled) for name in distilled[0]},
        )

    def _batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        state = self._state
        return read_epoch(
            loader,
            self._config.seed,
            state.epoch,
            self._device,
            skip=state.batch,
            fresh=self._file is not None,
        )

    def _step(self, batch: Any) -> None:
        state, seed = self._state, self._config.seed
        reseed(seed, self._device, "step", self._rank, state.steps)
        values = self._backward(batch)
        self._stepper.step()
        if self._count > 1:
            same_buffers(self._model)
        if self._callback is not None:
            reseed(seed, self._device, "callback", state.steps)
            self._callback.step(self._optimizer)
        state.steps += 1
        state.batch += 1
        sums = state.sums or [0.0] * len(values)
        state.sums = [before + value for before, value in zip(sums, values, strict=True)]
        # A loader may yield more batches than announced; the rate then keeps its final value.
        if state.steps < self._steps:
            self._schedule.step()

    def _backward(self, batch: Any) -> list[float]:
        """Leaves fresh gradients on the model; returns the terms' values over the whole batch."""
        part, fraction = share(batch, self._model, self._inputs, self._rank, self._count)
        values = self._trained(NoAutocast(to_device(part, self._device, self._dtype)))
        total = self._objective.total(values)
        self._model.zero_grad(set_to_none=True)
        if not total.requires_grad:
            raise TaskError(
                f"no loss of {[task.name for task in self._objective.tasks]} depends on a trainable "
                "parameter. Compute them from the picked output, without detach() or no_grad()."
            )
        # Processes average their gradients, so each weighs its own by its share of the samples.
        self._fabric.backward(total * (fraction * self._count))
        gradients = {name: p.grad for name, p in self._model.named_parameters() if p.grad is not None}
        # In 16 bits gradients can overflow: the scaler then skips the step and lowers its scale.
        scaled = self._config.precision == "16-mixed" and self._device.type != "cpu"
        norm = values.new_zeros(()) if scaled else torch.nn.utils.get_total_norm(gradients.values())
        # Read together, because each transfer waits for the device.
        figures = torch.cat([values.detach() * fraction, norm.detach().reshape(1).to(values)])
        *means, length = self._sum(figures)
        self._objective.check(means)
        if not math.isfinite(length):
            name = next((name for name, gradient in gradients.items() if not gradient.isfinite().all()), None)
            raise GradientError(
                f"the gradient of {name or 'the whole model'} is not finite, though the losses "
                f"{self._named(means)} are. "
                "Lower the learning rate, or look for a square root or division at 0 in a loss."
            )
        return means

    def _validate(self, validation: Iterable[Any]) -> float:
        sums = torch.zeros(len(self._objective.terms), device=self._device, dtype=self._dtype)
        taken = 0
        reseed(self._config.seed, self._device, "validation")
        with eval_mode(self._model), torch.no_grad(), self._fabric.autocast():
            for batch in read_epoch(validation, self._config.seed, 0, self._device):
                if taken % self._count == self._rank:
                    sums += self._objective(NoAutocast(to_device(batch, self._device, self._dtype)))
                taken += 1
        means = [value / taken for value in self._sum(sums)]
        self._objective.check(means)
        return self._objective.total(torch.tensor(means, dtype=torch.float64)).item()

    def _track_best(self, value: float) -> None:
        """Early stopping (Prechelt, 1998): remembers an epoch that is better than all before it."""
        state = self._state
        state.validation.append(value)
        if self._config.patience is None:
            return
        if value < state.best:
            state.best, state.waited = value, 0
            callback = None if self._callback is None else self._callback.state_dict()
            self._best = take(self._model), copy.deepcopy(callback)
        else:
            state.waited += 1
            state.stopped = state.waited >= self._config.patience

    def _sum(self, values: Tensor) -> list[float]:
        total = values if self._count == 1 else self._fabric.all_reduce(values, reduce_op="sum")
        assert isinstance(total, Tensor)
        return [float(value) for value in total.tolist()]

    def _named(self, values: Sequence[float], distill: bool = False) -> dict[str, float]:
        """The tasks' own losses, or distances from the teacher if ``distill`` or if there is no loss."""
        named: dict[str, float] = {}
        for term, value in zip(self._objective.terms, values, strict=True):
            if distill == (term.distill is not None):
                named[term.task.name] = value
            elif term.distill is not None:
                named.setdefault(term.task.name, value)
        return {task.name: named[task.name] for task in self._objective.tasks if task.name in named}

    def _seconds(self) -> float:
        return self._state.seconds + time.perf_counter() - self._started

    def _save(self) -> None:
        if self._file is None or not self.first:
            return
        self._file.write(
            {
                "state": vars(self._state) | {"seconds": self._seconds()},
                "model": take(self._model),
                "best": self._best,
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
                "precision": self._fabric.strategy.precision.state_dict(),
                "callback": None if self._callback is None else self._callback.state_dict(),
            }
        )

    def _resume(self) -> None:
        saved = None if self._file is None else self._file.read()
        if saved is None:
            return
        self._state = _State(**saved["state"])
        put(self._model, saved["model"])
        self._best = saved["best"]
        self._optimizer.load_state_dict(saved["optimizer"])
        self._schedule.load_state_dict(saved["schedule"])
        self._fabric.strategy.precision.load_state_dict(saved["precision"])
        if self._callback is not None:
            self._callback.load_state_dict(saved["callback"])
