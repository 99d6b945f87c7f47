"""The training objective: one module from a batch to the losses of all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from disparse_structured.data.batches import ToInputs, call_model, to_device
from disparse_structured.errors import OptionError, TaskError
from disparse_structured.tasks import Task, check_tasks
from disparse_structured.training.teacher import DistillationLoss, Teacher, relative_error


class NoAutocast:
    """Hides a batch from mixed precision: Fabric would round its ground truth to 16 bits."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch


@dataclass(frozen=True)
class Term:
    """One term of the objective: a task's own loss, or with ``distill`` its distance from the teacher."""

    task: Task
    weight: float
    distill: DistillationLoss | None = None


class TrainingObjective(nn.Module):
    """``model`` and its losses as one module, so that wrappers see a single output tensor.

    Raises:
        TaskError: the tasks are invalid, or one has neither a loss nor a teacher.
        ValueError: the teacher is the model, or a distillation loss names an unknown task.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Task],
        to_inputs: ToInputs | None,
        teacher: Teacher | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tasks = check_tasks(tasks)
        self.terms = _terms(self.tasks, teacher)
        if teacher is not None and teacher.model is model:
            raise OptionError("the teacher is the model itself. Pass a copy: copy.deepcopy(model).")
        self._inputs = to_inputs
        # Stays inside the dataclass, so that the teacher is not registered as a submodule and trained.
        self._teacher = teacher

    def forward(self, wrapped: NoAutocast) -> Tensor:
        """The terms' values, ``[terms]``."""
        batch = wrapped.batch
        output = call_model(self.model, batch, self._inputs)
        taught = self._teacher_output(batch)
        kind = next(self.model.parameters())
        mixed = torch.is_autocast_enabled(kind.device.type)
        values = []
        with torch.autocast(kind.device.type, enabled=False):
            for term in self.terms:
                picked = term.task.pick(output)
                if mixed:
                    picked = to_device(picked, kind.device, kind.dtype)
                if term.distill is None:
                    assert term.task.loss is not None
                    value = term.task.loss(picked, batch)
                else:
                    target = to_device(term.task.pick(taught), kind.device, kind.dtype)
                    value = _distance(term, picked, target)
                values.append(_scalar(term, value))
        return torch.stack(values)

    def total(self, values: Tensor) -> Tensor:
        """The quantity to minimize: the weighted sum of ``values``."""
        return torch.stack(
            [term.weight * value for term, value in zip(self.terms, values, strict=True)]
        ).sum()

    def check(self, values: Sequence[float]) -> None:
        """Raises :class:`TaskError` if a term's value is NaN or infinite."""
        for term, value in zip(self.terms, values, strict=True):
            if not torch.tensor(value).isfinite():
                raise TaskError(
                    f"{_name(term)} is {value}. "
                    "Lower the learning rate, or look for empty or wrong targets in the batch."
                )

    def _teacher_output(self, batch: Any) -> Any:
        if self._teacher is None:
            return None
        teacher = self._teacher.model
        tensor = next(iter(teacher.parameters()), None)
        if tensor is not None:
            batch = to_device(batch, tensor.device, tensor.dtype)
        with torch.no_grad():
            return call_model(teacher, batch, self._inputs)


def _terms(tasks: Sequence[Task], teacher: Teacher | None) -> tuple[Term, ...]:
    own = [Term(task, task.weight) for task in tasks if task.loss is not None]
    if teacher is None:
        for task in tasks:
            if task.loss is None:
                raise TaskError(
                    f"task {task.name!r} has no loss, and training needs one. Pass Task(..., loss=function "
                    "of (output, batch)), leave the task out, or learn from a teacher: "
                    "TrainingConfig(..., teacher=Teacher(dense))."
                )
        return tuple(own)
    unknown = sorted(set(teacher.losses) - {task.name for task in tasks})
    if unknown:
        raise OptionError(
            f"the teacher has a loss for {unknown[0]!r}, which is not one of the tasks "
            f"{[task.name for task in tasks]}. Name one of these."
        )
    distilled = [Term(task, teacher.weight, teacher.losses.get(task.name, relative_error)) for task in tasks]
    return (*own, *distilled)


def _distance(term: Term, picked: Any, target: Any) -> Tensor:
    assert term.distill is not None
    try:
        return term.distill(picked, target)
    except TaskError as error:
        raise TaskError(f"task {term.task.name!r}: {error}") from None


def _name(term: Term) -> str:
    return f"task {term.task.name!r}: its {'loss' if term.distill is None else 'distillation loss'}"


def _scalar(term: Term, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TaskError(
            f"{_name(term)} returned {found}; expected a floating-point tensor with one "
            "value. Reduce it, for example by .mean()."
        )
    return value.reshape(())
