"""Infers a model's tasks: one for each entry of what it returns."""

from __future__ import annotations

import dataclasses
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import as_arguments, call_model
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.precision import is_inexact
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import BatchError, DisparseWarning, TaskError
from disparse_structured.graph.copies import copied
from disparse_structured.graph.named_tensors import device_of
from disparse_structured.tasks import Task, check_tasks

_NUDGE = 0.1
"""How far parameters are moved, relative to their mean magnitude, to see which outputs change."""


def tasks_from_outputs(
    model: nn.Module, example_inputs: tuple[Any, ...] | torch.Tensor | Mapping[str, Any]
) -> tuple[Task, ...]:
    """Infer label-free tasks from what ``model`` returns for ``example_inputs`` in eval mode.

    A dict gives one task per key; a tuple or list, one per position (``output0``, ``output1``, ...); a named
    tuple, a dataclass or another object, one per field; a single tensor, the task ``output``. Nested
    tensors belong to their top-level entry. Entries without real or complex numbers (such as an argmax map)
    and those that depend on no parameter (anchors, the input itself) are left out. A copy of the model runs:
    the model and the global random states are unchanged.

    Warns:
        DisparseWarning: an entry is computed from parameters but has the same values with others, so that no
            task protects it; or it is a parameter itself.

    Raises:
        TaskError: no entry is left; the message says what the model returns.
        BatchError: the model refuses the inputs.
    """
    inputs = as_arguments(model, example_inputs)
    copy = copied(model)
    output = _run(copy, inputs)
    entries = tuple(_entries(output))
    floating = [task for task in entries if _numbers(task, output)]
    if not floating:
        raise TaskError(
            f"no task can be inferred from what {type(model).__name__} returns: {_content(entries, output)}. "
            "A task needs real or complex numbers. Let the model return them (logits instead of classes), "
            "or pass tasks=[Task(name, output)]."
        )
    parameters = {_memory(each): name for name, each in copy.named_parameters()}
    stored = {task: held for task in floating if (held := _stored(task, output, parameters))}
    _nudge(copy)
    moved = _run(copy, inputs)
    found = tuple(task for task in floating if _differs(task, output, moved))
    if not found:
        raise TaskError(
            f"no task can be inferred from what {type(model).__name__} returns: {_content(entries, output)} "
            "does not depend on any parameter. Pass tasks=[Task(name, output)], or a model whose output "
            "depends on its parameters."
        )
    for task, held in stored.items():
        warnings.warn(
            f"{task.name!r} in the output of {type(model).__name__} is not used as a task: it is the "
            f"parameter {', '.join(map(repr, held))} itself. Pass the names of the other outputs as tasks= "
            "to leave out this message.",
            DisparseWarning,
            stacklevel=2,
        )
    silent = _computed(copy, inputs, [task for task in floating if task not in (*found, *stored)])
    if silent:
        names = ", ".join(map(repr, silent))
        warnings.warn(
            f"{names} in the output of {type(model).__name__} is not used as a task: it is computed from "
            "parameters, but does not change with them on these inputs (it is saturated or multiplied by "
            "zero). What only it needs is not protected. Pass inputs on which it varies, or name the tasks.",
            DisparseWarning,
            stacklevel=2,
        )
    return found


def resolve_tasks(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | torch.Tensor | Mapping[str, Any],
    tasks: Sequence[Task | str] | None,
) -> tuple[Task, ...]:
    """Resolve each name in ``tasks`` to the output entry with that name; None means every entry.

    Raises:
        TaskError: as :func:`tasks_from_outputs` does, or a name is used twice.
        BatchError: the model refuses the inputs.
    """
    if tasks is None:
        return tasks_from_outputs(model, example_inputs)
    if isinstance(tasks, Task | str) or not isinstance(tasks, Iterable):
        return check_tasks(tasks)  # raises TaskError
    tasks = tuple(tasks)
    if not any(isinstance(task, str) for task in tasks):
        return check_tasks(tasks)
    output = output_of(model, as_arguments(model, example_inputs))
    known = {task.name: task for task in _entries(output)}
    return check_tasks([known.get(task, task) if isinstance(task, str) else task for task in tasks])


def output_of(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Run a copy of ``model`` in eval mode; raise :class:`BatchError` if it refuses ``inputs``."""
    return _run(copied(model), inputs)


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The output in eval mode, with the same random states at every call."""
    with Isolation(0, device_of(model)), eval_mode(model), torch.no_grad():
        return call_model(model, inputs, lambda given: given)


def _entries(output: Any) -> Iterator[Task]:
    """One candidate for each top-level entry of ``output``, of any type."""
    if isinstance(output, torch.Tensor):
        yield Task("output", ())
    elif isinstance(output, Mapping):
        for key in output:
            yield Task(str(key), key if type(key) in (str, int) else operator.itemgetter(key))
    elif pytree.is_namedtuple_instance(output):
        for name in output._fields:
            yield Task(name, name)
    elif isinstance(output, tuple | list):
        for position in range(len(output)):
            yield Task(f"output{position}", position)
    else:
        for name in _fields(output):
            yield Task(name, name)


def _fields(output: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(output):
        return tuple(field.name for field in dataclasses.fields(output))
    return tuple(getattr(output, "__dict__", ()))


def _numbers(task: Task, output: Any) -> list[torch.Tensor]:
    """The nonempty real and complex tensors of the task's entry."""
    try:
        tensors = task.tensors(output)
    except TaskError:  # None, a number, a string
        return []
    return [tensor for tensor in tensors if is_inexact(tensor) and tensor.numel()]


def _nudge(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if is_inexact(parameter) and parameter.numel():
                size = _NUDGE * float(parameter.abs().mean()) + _NUDGE**2
                kind = torch.complex64 if parameter.is_complex() else None
                noise = torch.randn(parameter.shape, generator=generator, dtype=kind) * size
                parameter.add_(noise.to(parameter))


def _differs(task: Task, output: Any, moved: Any) -> bool:
    """Whether the task's numbers, or the number of its tensors, depend on the parameters."""
    before, after = _numbers(task, output), _numbers(task, moved)
    return len(before) != len(after) or not all(map(torch.equal, before, after))


def _stored(task: Task, output: Any, parameters: Mapping[int, str]) -> tuple[str, ...]:
    """The names of the parameters that the task's numbers are; empty if some are none."""
    names = [parameters.get(_memory(each), "") for each in _numbers(task, output)]
    return tuple(dict.fromkeys(names)) if all(names) else ()


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _computed(model: nn.Module, inputs: tuple[Any, ...], tasks: Sequence[Task]) -> list[str]:
    """The names of the ``tasks`` whose tensors are computed from parameters, whatever their values."""
    if not tasks:
        return []
    for parameter in model.parameters():
        parameter.requires_grad_(is_inexact(parameter))
    try:
        with Isolation(0, device_of(model)), eval_mode(model), torch.enable_grad():
            output = call_model(model, inputs, lambda given: given)
    except BatchError:  # it runs without gradients only, so that nobody can tell
        return []
    return [task.name for task in tasks if any(each.requires_grad for each in _numbers(task, output))]


def _content(entries: tuple[Task, ...], output: Any) -> str:
    if not entries:
        return f"{type(output).__name__} {output!r}"
    return ", ".join(f"{task.name}: {_kind(task.pick(output))}" for task in entries)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
