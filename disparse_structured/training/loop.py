"""Training as one call, with checks before it and cleanup after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

from torch import nn

from disparse_structured.checks import check_counts
from disparse_structured.data.batches import ToInputs, batches
from disparse_structured.data.modes import eval_mode, plain_modes
from disparse_structured.errors import BatchError, OptionError, UnsupportedModelError
from disparse_structured.tasks import Task
from disparse_structured.training.checkpoint import Checkpoint, identity
from disparse_structured.training.config import Callback, OnEpoch, TrainingConfig, TrainingFacts
from disparse_structured.training.objective import TrainingObjective
from disparse_structured.training.progress import bar
from disparse_structured.training.random_streams import kept_generators, stream
from disparse_structured.training.run import TrainingRun
from disparse_structured.training.snapshot import guarded


@plain_modes()
def train(
    model: nn.Module,
    tasks: Sequence[Task],
    loader: Iterable[Any],
    config: TrainingConfig,
    *,
    callback: Callback | None = None,
    validation: Iterable[Any] | None = None,
    to_inputs: ToInputs | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
) -> TrainingFacts:
    """Train ``model`` in place on the weighted sum of its tasks' losses.

    Batches are moved to the model's device and floating-point type. The model is in training mode
    meanwhile. Afterward its modes and the random states of Python, NumPy and torch are restored, and its
    gradients are cleared. If anything raises, the weights and the callback's state are restored.

    *Resuming.* A run with ``checkpoint`` can be killed at any time. Call again with the same arguments, a
    freshly built model and a fresh callback: the result is that of an uninterrupted run, bit for bit on a
    deterministic device. The file of a finished run gives its result at once. The loader has its own
    random stream in every epoch, and the first batches of an interrupted epoch are read again. So the
    loader must be a DataLoader, or draw from the global random states of Python, NumPy and torch.

    *Several processes.* Started by ``torchrun``, every process reads the same batches and trains on its
    share of each; losses must be means over samples. The weights equal those of a single process up to
    rounding, except for dropout and batch normalization, which sees only its process's share. Each process
    needs the same model, callback and checkpoint file; the first one writes the file, shows progress and
    calls ``on_epoch``. On GPUs the model is moved to the process's device.

    Args:
        model: any module with trainable parameters.
        tasks: each needs a ``loss``, unless there is a ``config.teacher``;
            ``Task.weight`` scales the loss.
        loader: iterated once per epoch, so a list or a DataLoader, not a generator. If it has no length
            it is read once more, to count.
        config: how to train.
        callback: called after each optimizer step.
        validation: read after each epoch in eval mode. With ``config.patience``, the weights and the
            callback's state of the epoch with the lowest loss are restored at the end.
        to_inputs: from a batch to the tuple of ``forward``'s arguments; by default
            :func:`disparse_structured.data.batches.model_inputs`.
        checkpoint: the file to write, and to resume from if it exists.
        checkpoint_every: steps between two writes; the end of an epoch is always written.
        on_epoch: called after each epoch, and again on resuming if the run was killed just then.
        progress: show progress on standard error (bars on a terminal, occasional lines elsewhere).

    Raises:
        TaskError: a task has no loss, or its loss is not a finite scalar that depends on the model.
        BatchError: the loader is empty or can be read only once, or the model refuses a batch.
        GradientError: a gradient is NaN or infinite.
        UnsupportedModelError: nothing in the model is trainable.
        LoadError: the file is not a checkpoint, or belongs to another run.
        TypeError: the callback's state_dict holds values that a checkpoint cannot.
        ValueError: patience without validation data, ``checkpoint_every`` below 1, or a teacher that is
            the model.
    """
    objective = TrainingObjective(model, tasks, to_inputs, config.teacher)
    _check(model, config, validation, checkpoint_every)
    teachers = [] if config.teacher is None else [config.teacher.model]
    device = next(model.parameters()).device
    for data in (loader,) if validation is None else (loader, validation):
        _check_rereadable(data)
    with (
        guarded(model, callback),
        eval_mode(*teachers),
        stream(config.seed, device, "run"),
        kept_generators(loader),
        kept_generators(() if validation is None else validation),
    ):
        steps = _count(loader)
        file = None
        if checkpoint is not None:
            facts = identity(
                config, objective.tasks, model, steps, validation is not None, callback is not None
            )
            file = Checkpoint(checkpoint, facts)
        run = TrainingRun(objective, config, steps, callback, to_inputs, file)
        with bar(progress and run.first, config.epochs, config.epochs * steps) as shown:
            run.train(loader, validation, checkpoint_every, on_epoch, shown)
        return run.facts()


def _check(
    model: nn.Module, config: TrainingConfig, validation: Iterable[Any] | None, checkpoint_every: int
) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"no parameter of {type(model).__name__} requires a gradient, so there is nothing to train. "
            "Call requires_grad_(True) on the parameters to be fine-tuned."
        )
    if config.patience is not None and validation is None:
        raise OptionError(
            f"patience={config.patience} needs validation data. Pass validation=, batches that are not "
            "trained on, or leave patience out."
        )
    check_counts(checkpoint_every=checkpoint_every)


def _check_rereadable(loader: Iterable[Any]) -> None:
    if isinstance(loader, Iterator):
        raise BatchError(
            f"the loader is a {type(loader).__name__}, which can be read only once, and training reads its "
            "data again in every epoch. Pass a DataLoader or a list of batches."
        )


def _count(loader: Iterable[Any]) -> int:
    try:
        announced = len(loader) if isinstance(loader, Sized) else 0
    except TypeError:  # a DataLoader over an IterableDataset has __len__, but no length
        announced = 0
    return announced or sum(1 for _ in batches(loader))
