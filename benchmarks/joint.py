"""One task in place of several: the weighted sum of all losses, for methods in which tasks do not vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from disparse_structured.errors import TaskError
from disparse_structured.structure import Structure
from disparse_structured.tasks import Task, check_tasks


@dataclass(frozen=True)
class Everything:
    """Picks the outputs of all tasks, by name."""

    tasks: tuple[Task, ...]

    def __call__(self, output: Any) -> dict[str, Any]:
        return {task.name: task.pick(output) for task in self.tasks}


@dataclass(frozen=True)
class JointLoss:
    """The sum of the tasks' losses times their weights."""

    tasks: tuple[Task, ...]

    def __call__(self, picked: Mapping[str, Any], batch: Any) -> Tensor:
        losses = [task.weight * loss_of(task)(picked[task.name], batch) for task in self.tasks]
        return torch.stack(losses).sum()


def joint_task(tasks: Sequence[Task]) -> Task:
    """The task ``joint`` that stands for all of ``tasks``; raises :class:`TaskError` if one has no loss."""
    tasks = check_tasks(tasks)
    for task in tasks:
        loss_of(task)
    return Task("joint", Everything(tasks), JointLoss(tasks))


def parts(structure: Structure) -> tuple[Task, ...]:
    """The tasks of ``structure``, or the tasks that its joint one stands for."""
    (first, *others) = structure.task_objects
    if not others and isinstance(first.loss, JointLoss):
        return first.loss.tasks
    return structure.task_objects


def loss_of(task: Task) -> Any:
    """The task's loss; raises :class:`TaskError` if it has none."""
    if task.loss is None:
        raise TaskError(f"task {task.name!r} has no loss, and this method needs one. Give the Task a loss.")
    return task.loss
