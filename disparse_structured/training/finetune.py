"""Plain fine-tuning of all tasks together: AdamW with a one-cycle learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from disparse_structured.data.batches import ToInputs
from disparse_structured.tasks import Task
from disparse_structured.training import OnEpoch, TrainingConfig, train


@dataclass(frozen=True)
class FinetuneFacts:
    """The record of a fine-tuning run. ``losses[task][epoch]`` is the unweighted mean over batches."""

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
    to_inputs: ToInputs | None = None,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
    seed: int = 0,
) -> FinetuneFacts:
    """Train ``model`` in place on the weighted sum of its tasks' losses.

    AdamW (Loshchilov and Hutter, ICLR 2019) with torch's defaults, under a one-cycle learning rate
    (Smith and Topin, 2018) that peaks at ``lr``. Batches are moved to the model's device and
    floating-point type. The model is in training mode meanwhile. Afterward its modes and torch's random
    state are restored and its gradients are cleared. ``seed`` fixes dropout and the loader's shuffling.
    If anything raises, the weights are restored.

    :func:`disparse_structured.training.train` has more options: distillation, mixed precision, early
    stopping and resuming.

    Args:
        model: any module with trainable parameters.
        tasks: each needs a ``loss``; ``Task.weight`` scales it.
        loader: iterated once per epoch, so a list or a DataLoader, not a generator. If it has no length
            it is read once more, to count.
        epochs: at least 1.
        lr: the highest learning rate.
        to_inputs: from a batch to the tuple of ``forward``'s arguments; by default
            :func:`disparse_structured.data.batches.model_inputs`.
        on_epoch: called after each epoch.
        progress: show progress on standard error (bars on a terminal, occasional lines elsewhere).
        seed: for torch's random number generators.

    Raises:
        TaskError: a task has no loss, or its loss is not a finite scalar that depends on the model.
        BatchError: the loader is empty or can be read only once, or the model refuses a batch.
        GradientError: a gradient is NaN or infinite.
        UnsupportedModelError: nothing in the model is trainable.
        ValueError: ``epochs`` or ``lr`` is not positive.
    """
    config = TrainingConfig(epochs=epochs, lr=lr, seed=seed)
    facts = train(model, tasks, loader, config, to_inputs=to_inputs, on_epoch=on_epoch, progress=progress)
    return FinetuneFacts(facts.epochs, facts.steps, lr, seed, facts.losses, facts.seconds)
