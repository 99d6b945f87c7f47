"""What a task is: a name, its part of the model's output, and optionally a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from disparse_structured.checks import check_callable, is_number, shown
from disparse_structured.errors import TaskError

Selector = str | int | tuple[str | int, ...] | Callable[[Any], Any]
Loss = Callable[[Any, Any], torch.Tensor]


_SELECTOR = (
    "Pass a key, an index, an attribute path, a tuple of them, or a function of what the model returns."
)


@dataclass(frozen=True)
class Task:
    """One task of a multi-task model.

    Args:
        name: how the task is called in plans, reports and ONNX outputs.
        output: picks the task's part of whatever the model returns: a dict key, a tuple index,
            an attribute path (``"heads.depth"``), a tuple of such steps (an empty one picks all of it),
            or a callable. By default the entry that has the task's name.
        loss: ``loss(picked_output, batch) -> scalar tensor``. Without it the task is *label-free*:
            its saliency is the response of its own output (see :mod:`disparse_structured.scoring`).
        weight: the task's weight in training losses and in the weighted-mean arbiter. Votes never
            depend on it.

    Raises:
        TaskError: an argument is of the wrong kind, or ``name`` is empty or not printable.
    """

    name: str
    output: Selector = None  # type: ignore[assignment]  # the name
    loss: Loss | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise TaskError(
                f"task name {shown(self.name)} cannot be written in plans, tables and ONNX files. Pass "
                "Task(name, output) with a name of printable characters."
            )
        if self.output is None:
            object.__setattr__(self, "output", self.name)
        steps = self.output if isinstance(self.output, tuple) else (self.output,)
        if callable(self.output):
            check_callable("the output of a task", self.output, 1, _SELECTOR, TaskError)
        elif not all(isinstance(each, str | int) and not isinstance(each, bool) for each in steps):
            raise TaskError(f"task {self.name!r}: the output cannot be {shown(self.output)}. {_SELECTOR}")
        if self.loss is not None:
            remedy = "Pass a function of the task's output and of the batch, or leave it out."
            check_callable(f"the loss of task {self.name!r}", self.loss, 2, remedy, TaskError)
        if not is_number(self.weight) or self.weight < 0:
            raise TaskError(
                f"task {self.name!r}: weight={shown(self.weight)} must be a finite number of at least 0."
            )

    def pick(self, output: Any) -> Any:
        """The task's part of the model's ``output``; raises :class:`TaskError` if there is none."""
        if callable(self.output):
            try:
                return self.output(output)
            except Exception as error:
                raise TaskError(
                    f"task {self.name!r}: its output selector raised {type(error).__name__}: {error} "
                    f"on {_describe(output)}. Pass a selector that fits what the model returns."
                ) from error
        steps: Sequence[str | int] = self.output if isinstance(self.output, tuple) else (self.output,)
        for step in steps:
            output = self._step(output, step)
        return output

    def tensors(self, output: Any) -> list[torch.Tensor]:
        """The tensors of the task's part of ``output``, in pytree order; at least one."""
        picked = self.pick(output)
        leaves = pytree.tree_leaves(vars(picked) if _is_plain_object(picked) else picked)
        found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if not found:
            raise TaskError(
                f"task {self.name!r}: the selector {self.output!r} picks {_describe(picked)}, "
                "which holds no tensor. Point it at the task's tensor."
            )
        return found

    def _step(self, output: Any, step: str | int) -> Any:
        try:
            if isinstance(step, int):
                return output[step]
            if isinstance(output, Mapping):
                if step in output or "." not in step:
                    return output[step]
            for part in step.split("."):
                output = output[part] if isinstance(output, Mapping) else getattr(output, part)
            return output
        except (KeyError, IndexError, AttributeError, TypeError):
            raise TaskError(
                f"task {self.name!r}: the selector {self.output!r} misses at {step!r}; "
                f"there the model returns {_describe(output)}. "
                "Use one of these keys, indices or attributes, or a callable."
            ) from None


def check_tasks(tasks: Sequence[Task | str]) -> tuple[Task, ...]:
    """``tasks`` as a tuple, each name made a task; refused if empty, or if a name is used twice."""
    if isinstance(tasks, Task | str):
        name = tasks if isinstance(tasks, str) else tasks.name
        raise TaskError(f"tasks must be a list, got the {type(tasks).__name__} {name!r}. Pass a list of one.")
    if not isinstance(tasks, Iterable):
        raise TaskError(f"tasks must be a list of Task objects or names, got {shown(tasks)}.")
    found = tuple(Task(task) if isinstance(task, str) else task for task in tasks)
    if not found:
        raise TaskError("no task was given. Pass at least one Task, or the name of an output.")
    for task in found:
        if not isinstance(task, Task):
            raise TaskError(f"expected Task objects, found {type(task).__name__}. Use Task(name, output).")
    names = [task.name for task in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskError(f"task name {twice[0]!r} is used {names.count(twice[0])} times. Names must differ.")
    return found


def named_among(
    tasks: Sequence[Task | str] | None, known: Callable[[], Sequence[Task]]
) -> Sequence[Task | str]:
    """``tasks`` with each name replaced by the task of ``known()`` that has it; by default all of them."""
    if tasks is None:
        return known()
    if isinstance(tasks, Task | str) or not isinstance(tasks, Iterable):
        return tasks  # refused by check_tasks
    names = [task for task in tasks if isinstance(task, str)]
    by_name = {task.name: task for task in known()} if names else {}
    for name in names:
        if name not in by_name:
            raise TaskError(f"there is no task {name!r}. The model has {', '.join(map(repr, by_name))}.")
    return [by_name[task] if isinstance(task, str) else task for task in tasks]


def _is_plain_object(value: Any) -> bool:
    return not isinstance(value, torch.Tensor | Mapping | list | tuple) and hasattr(value, "__dict__")


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if _is_plain_object(value):
        return f"a {type(value).__name__} with attributes {sorted(vars(value))}"
    return f"{type(value).__name__} {value!r}"
