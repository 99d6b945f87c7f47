"""Plain fine-tuning of all tasks together: AdamW with a one-cycle learning rate."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from disparse_structured.batches import Inputs, batches, call_model, to_device
from disparse_structured.errors import BatchError, GradientError, TaskError, UnsupportedModelError
from disparse_structured.tasks import Task, check_tasks

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch with its number, from 0, and each task's mean loss over it."""


@dataclass(frozen=True)
class FinetuneFacts:
    """What a fine-tuning run did. ``losses[task][epoch]`` is the mean over batches, not weighted."""

    epochs: int
    steps: int
    lr: float
    seed: int
    losses: Mapping[str, tuple[float, ...]]
    seconds: float = field(compare=False)


def finetune(
    model: nn.Module,
    tasks: Sequence[Task],
    loader: Iterable[Any],
    *,
    epochs: int,
    lr: float,
    inputs: Inputs | None = None,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
    seed: int = 0,
) -> FinetuneFacts:
    """Train ``model`` in place on the weighted sum of its tasks' losses.

    AdamW (Loshchilov and Hutter, ICLR 2019) with torch's defaults, under a one-cycle learning rate
    (Smith and Topin, 2018) that peaks at ``lr``. Batches go to the model's device and floating-point
    type. Training mode is on meanwhile and restored afterwards, gradients are cleared, torch's random
    state is left as found; ``seed`` fixes dropout and the loader's shuffling. If anything raises, the
    weights are put back as they were.

    Args:
        model: any module with trainable parameters.
        tasks: each needs a ``loss``; ``Task.weight`` scales it.
        loader: iterated once an epoch, so a list or a DataLoader, not a generator. If it has no length
            it is read once more, to count.
        epochs: at least 1.
        lr: the highest learning rate.
        inputs: from a batch to the tuple of ``forward``'s arguments; by default
            :func:`disparse_structured.batches.model_inputs`.
        on_epoch: called after each epoch.
        progress: draw a progress bar, if standard error is a terminal.
        seed: for torch's random number generators.

    Raises:
        TaskError: a task has no loss, or its loss is not a finite scalar that depends on the model.
        BatchError: the loader is empty or can be read only once, or the model refuses a batch.
        GradientError: a gradient is NaN or infinite.
        UnsupportedModelError: nothing in the model is trainable.
        ValueError: ``epochs`` or ``lr`` is not positive.
    """
    tasks = _trainable(tasks)
    if epochs < 1 or lr <= 0:
        raise ValueError(f"epochs={epochs} and lr={lr}: both must be above 0.")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UnsupportedModelError(
            f"no parameter of {type(model).__name__} requires a gradient, so there is nothing to train. "
            "Call requires_grad_(True) on the parameters to be fine-tuned."
        )
    per_epoch = _count(loader)
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=max(epochs * per_epoch, 2))
    history: dict[str, list[float]] = {task.name: [] for task in tasks}
    steps = 0
    with _training(model, seed), _bar(progress, epochs * per_epoch) as advance:
        for epoch in range(epochs):
            sums = torch.zeros(len(tasks), dtype=torch.float64)
            taken = 0
            for batch in batches(loader):
                sums += _step(
                    model, tasks, to_device(batch, parameters[0].device, parameters[0].dtype), inputs
                )
                optimizer.step()
                # A loader may yield more than it announced; the rate then stays at its end.
                if rate.last_epoch + 1 < rate.total_steps:
                    rate.step()
                taken += 1
                advance()
            steps += taken
            means = dict(zip(history, (sums / taken).tolist(), strict=True))
            for name, mean in means.items():
                history[name].append(mean)
            if on_epoch is not None:
                on_epoch(epoch, means)
    losses = {name: tuple(means) for name, means in history.items()}
    return FinetuneFacts(epochs, steps, lr, seed, losses, seconds=time.perf_counter() - started)


def _trainable(tasks: Sequence[Task]) -> tuple[Task, ...]:
    tasks = check_tasks(tasks)
    for task in tasks:
        if task.loss is None:
            raise TaskError(
                f"task {task.name!r} has no loss, and training needs one. "
                "Pass Task(..., loss=function of (output, batch)), or leave the task out of fine-tuning."
            )
    return tasks


def _count(loader: Iterable[Any]) -> int:
    if isinstance(loader, Iterator):
        raise BatchError(
            f"the loader is a {type(loader).__name__}, which can be read only once, and training reads its "
            "data anew in every epoch. Pass a DataLoader or a list of batches."
        )
    try:
        announced = len(loader) if isinstance(loader, Sized) else 0
    except TypeError:  # a DataLoader over a stream has __len__, but no length
        announced = 0
    return announced or sum(1 for _ in batches(loader))


def _step(model: nn.Module, tasks: Sequence[Task], batch: Any, inputs: Inputs | None) -> Tensor:
    """Leaves fresh gradients on the model; returns each task's loss, ``[tasks]`` in double precision."""
    output = call_model(model, batch, inputs)
    losses = [_loss(task, output, batch) for task in tasks]
    model.zero_grad(set_to_none=True)
    total = torch.stack([task.weight * loss for task, loss in zip(tasks, losses, strict=True)]).sum()
    if not total.requires_grad:
        raise TaskError(
            f"no loss of {[task.name for task in tasks]} depends on a trainable parameter. "
            "Compute them from the picked output, without detach() or no_grad()."
        )
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not torch.nn.utils.get_total_norm(gradients.values()).isfinite():
        name = next((name for name, gradient in gradients.items() if not gradient.isfinite().all()), None)
        raise GradientError(
            f"the gradient of {name or 'the whole model'} is not finite, though the losses "
            f"{ {task.name: loss.item() for task, loss in zip(tasks, losses, strict=True)} } are. "
            "Lower the learning rate, or look for a square root or division at 0 in a loss."
        )
    return torch.stack([loss.detach().double().cpu() for loss in losses])


def _loss(task: Task, output: Any, batch: Any) -> Tensor:
    assert task.loss is not None
    loss = task.loss(task.pick(output), batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        found = f"{loss.dtype} {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TaskError(
            f"task {task.name!r}: its loss returned {found}; expected a floating-point tensor with one "
            "value. Reduce it, for example by .mean()."
        )
    if not loss.isfinite():
        raise TaskError(
            f"task {task.name!r}: its loss is {loss.item()}. "
            "Lower the learning rate, or look for empty or wrong targets in the batch."
        )
    return loss.reshape(())


@contextmanager
def _training(model: nn.Module, seed: int) -> Iterator[None]:
    """Training mode and a seeded generator within; weights come back if the body raises."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    buffers = [
        (module, name, None if value is None else value.clone())
        for module in model.modules()
        for name, value in module._buffers.items()
    ]
    devices = {parameter.device.index or 0 for parameter, _ in parameters if parameter.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        torch.manual_seed(seed)
        model.train()
        try:
            yield
        except Exception:
            with torch.no_grad():
                for parameter, value in parameters:
                    parameter.copy_(value)
            # Bound anew rather than copied into: a module may have replaced the tensor.
            for owner, name, buffer in buffers:
                owner._buffers[name] = buffer
            raise
        finally:
            model.zero_grad(set_to_none=True)
            for module, mode in modes:
                module.training = mode


@contextmanager
def _bar(wanted: bool, total: int) -> Iterator[Callable[[], None]]:
    if not (wanted and sys.stderr.isatty()):
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True) as shown:
        line = shown.add_task("fine-tuning", total=total)
        yield lambda: shown.advance(line)
