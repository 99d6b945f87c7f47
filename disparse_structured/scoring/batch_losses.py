"""The tasks' losses on one batch as functions of gates that the caller chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from disparse_structured.data.precision import as_real, is_inexact
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import TaskError
from disparse_structured.scoring.objectives import Packing, loss_of
from disparse_structured.tasks import Task

Outputs = dict[str, tuple[torch.Tensor, ...]]


@dataclass(frozen=True, eq=False)
class BatchLosses:
    """The loss of each task on one batch, as a function of the gates.

    A gate is a factor on everything read from a unit: 1 leaves the unit unchanged, 0 removes it. Losses
    are differentiable with respect to the gates, unless gradients are disabled where they are computed.

    The loss of a label-free task is the squared distance between its output and the unchanged network's,
    divided by the squared norm of the latter.

    Args:
        batch: what the loader yielded.
        samples: how many examples it holds.
        open: ``[units]``, the gates of the unchanged network: 1, or 0 where the probe's ``keep`` is False.
            Other gates must have its device and dtype.
        tasks: the tasks, in row order.
        run: computes the tasks' outputs for given gates.
        packings: for each task with a loss, how its output is assembled for the loss.
        isolation: the random states that the losses run on.
    """

    batch: Any
    samples: int
    open: torch.Tensor
    tasks: tuple[Task, ...]
    run: Callable[[torch.Tensor], Outputs]
    packings: Mapping[str, Packing]
    isolation: Isolation
    _dense: Outputs = field(default_factory=dict, init=False)

    def __call__(self, gates: torch.Tensor) -> torch.Tensor:
        """The losses of all tasks, ``[tasks]``, from one forward pass with ``gates`` ``[units]``."""
        with self.isolation:
            outputs = self.run(gates)
            losses = [self._loss(task, outputs[task.name]) for task in self.tasks]
        return torch.stack([loss.reshape(()) for loss in losses])

    def of(self, row: int, gates: torch.Tensor) -> torch.Tensor:
        """Compute the loss of task ``row`` alone, a scalar."""
        task = self.tasks[row]
        with self.isolation:
            return self._loss(task, self.run(gates)[task.name]).reshape(())

    def _loss(self, task: Task, outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if task.loss is not None:
            return loss_of(task, self.packings[task.name], outputs, self.batch)
        if not self._dense:
            with torch.no_grad():
                self._dense.update(self.run(self.open))
        return _relative_distance(task, outputs, self._dense[task.name])


def _relative_distance(
    task: Task, tensors: tuple[torch.Tensor, ...], dense: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    pairs = [
        (as_real(one), as_real(other)) for one, other in zip(tensors, dense, strict=True) if is_inexact(one)
    ]
    if not pairs:
        raise TaskError(
            f"task {task.name!r} has no loss, and its output {[str(tensor.dtype) for tensor in tensors]} "
            "cannot be differentiated. Point its selector at real or complex values, such as logits."
        )
    distance = torch.stack([(one - other).float().square().sum() for one, other in pairs]).sum()
    norm = torch.stack([other.float().square().sum() for _, other in pairs]).sum()
    return distance / norm.clamp_min(torch.finfo(torch.float32).tiny)
