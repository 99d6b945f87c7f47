"""Training as one call: what is checked before it, and what is put back after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

from torch import nn

from disparse_structured.data.batches import ToInputs, batches
from disparse_structured.data.modes import eval_mode
from disparse_structured.errors import BatchError, UnsupportedModelError
from disparse_structured.tasks import Task
from disparse_structured.training.checkpoint import Checkpoint, identity
from disparse_structured.training.objective import Objective
from disparse_structured.training.progress import bar
from disparse_structured.training.random_streams import kept_generators, stream
from disparse_structured.training.recipe import Callback, OnEpoch, TrainingConfig, TrainingFacts
from disparse_structured.training.run import Run
from disparse_structured.training.snapshot import guarded


def train(
    model: nn.Module,
    tasks: Sequence[Task],
    loader: Iterable[Any],
    recipe: TrainingConfig,
    *,
    companion: Callback | None = None,
    validation: Iterable[Any] | None = None,
    to_inputs: ToInputs | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
) -> TrainingFacts:
    """Train ``model`` in place on the weighted sum of its tasks' losses.

    Batches go to the model's device and floating-point type. Training mode is on meanwhile and restored
    afterwards, gradients are cleared, the random states of Python, NumPy and torch are left as found. If
    anything raises, the weights and the companion's state are put back as they were.

    *Resuming.* With ``checkpoint``, call again with the same arguments, a freshly built model and a fresh
    companion after the process was killed, at whatever moment: the result is that of a run without
    interruption, bit for bit where the device computes deterministically. A finished run's file gives its
    result at once. The loader draws random numbers from a stream of its own in every epoch, and the first
    batches of an interrupted epoch are read again, so any loader will do that draws from the global random
    states of Python, NumPy and torch, or is a DataLoader.

    *Several processes.* Started by ``torchrun``, every process reads the same batches and trains on its
    share of each; losses must be means over samples. The weights are those of one process up to rounding,
    apart from batch normalisation, which sees the process's share only, and dropout. Each process needs
    the same model, companion and checkpoint file; the first one writes the file, shows progress and calls
    ``on_epoch``. On GPUs the model is moved to the process's own.

    Args:
        model: any module with trainable parameters.
        tasks: each needs a ``loss``, unless there is a teacher in ``recipe.distillation``;
            ``Task.weight`` scales the loss.
        loader: iterated once an epoch, so a list or a DataLoader, not a generator. If it has no length
            it is read once more, to count.
        recipe: how to train.
        companion: takes part after each optimizer step.
        validation: read after each epoch in eval mode. With ``recipe.patience`` the weights, and the
            companion's state, of the epoch with the lowest loss come back at the end.
        inputs: from a batch to the tuple of ``forward``'s arguments; by default
            :func:`disparse_structured.data.batches.model_inputs`.
        checkpoint: the file to write and to go on from.
        checkpoint_every: steps between two writes; the end of an epoch is always written.
        on_epoch: called after each epoch, once more if the run is killed just then.
        progress: draw a progress bar, if standard error is a terminal.

    Raises:
        TaskError: a task has no loss, or its loss is not a finite scalar that depends on the model.
        BatchError: the loader is empty or can be read only once, or the model refuses a batch.
        GradientError: a gradient is NaN or infinite.
        UnsupportedModelError: nothing in the model is trainable.
        LoadError: the checkpoint is another run's, or is none.
        TypeError: the companion's state_dict holds what a checkpoint cannot.
        ValueError: patience without validation data, ``checkpoint_every`` below 1, or a teacher that is
            the model.
    """
    objective = Objective(model, tasks, to_inputs, recipe.distillation)
    _check(model, recipe, validation, checkpoint_every)
    teachers = [] if recipe.distillation is None else [recipe.distillation.teacher]
    device = next(model.parameters()).device
    for data in (loader,) if validation is None else (loader, validation):
        _check_rereadable(data)
    with (
        guarded(model, companion),
        eval_mode(*teachers),
        stream(recipe.seed, device, "run"),
        kept_generators(loader),
        kept_generators(() if validation is None else validation),
    ):
        steps = _count(loader)
        file = None
        if checkpoint is not None:
            facts = identity(
                recipe, objective.tasks, model, steps, validation is not None, companion is not None
            )
            file = Checkpoint(checkpoint, facts)
        run = Run(objective, recipe, steps, companion, to_inputs, file)
        with bar(progress and run.first, recipe.epochs, recipe.epochs * steps) as shown:
            run.train(loader, validation, checkpoint_every, on_epoch, shown)
        return run.facts()


def _check(
    model: nn.Module, recipe: TrainingConfig, validation: Iterable[Any] | None, checkpoint_every: int
) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"no parameter of {type(model).__name__} requires a gradient, so there is nothing to train. "
            "Call requires_grad_(True) on the parameters to be fine-tuned."
        )
    if recipe.patience is not None and validation is None:
        raise ValueError(
            f"patience={recipe.patience} needs data to judge by. Pass validation=, batches that are not "
            "trained on, or leave patience out."
        )
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every}: it counts steps, so it must be at least 1.")


def _check_rereadable(loader: Iterable[Any]) -> None:
    if isinstance(loader, Iterator):
        raise BatchError(
            f"the loader is a {type(loader).__name__}, which can be read only once, and training reads its "
            "data anew in every epoch. Pass a DataLoader or a list of batches."
        )


def _count(loader: Iterable[Any]) -> int:
    try:
        announced = len(loader) if isinstance(loader, Sized) else 0
    except TypeError:  # a DataLoader over a stream has __len__, but no length
        announced = 0
    return announced or sum(1 for _ in batches(loader))
