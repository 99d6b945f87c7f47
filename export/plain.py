"""A copy of a model as a function from tensors to the tensors of its tasks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from disparse_structured.errors import DisparseError, ExportError
from disparse_structured.export.reasons import reason
from disparse_structured.export.session import shapes_text

Outputs = Mapping[str, Callable[[Any], Any]]
"""Task name -> function that picks the task's tensor, or list of tensors, from what the model returns."""

Inputs = tuple[torch.Tensor, ...]

TaskTensors = Mapping[str, Sequence[torch.Tensor]]
"""Task name -> its tensors."""


class TaskOutputs(nn.Module):
    """Returns exactly the tensors of the tasks, in the order of ``outputs``, as a flat tuple."""

    def __init__(self, model: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.model = model
        self.pickers = dict(outputs)

    def forward(self, *inputs: torch.Tensor) -> Inputs:
        """The tensors of all tasks, in order."""
        return tuple(tensor for tensors in self.by_task(*inputs).values() for tensor in tensors)

    def by_task(self, *inputs: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """The tensors of each task."""
        returned = self.model(*inputs)
        return {task: _tensors(task, pick(returned)) for task, pick in self.pickers.items()}


def plain_copy(model: nn.Module, outputs: Outputs) -> TaskOutputs:
    """A copy of ``model`` on the CPU in eval mode that returns the tensors of its tasks.

    Everything else works on this copy, so nothing can change the user's model: its weights, buffers,
    modes, hooks and device are not changed.

    Raises:
        ExportError: there is no task, or the model cannot be copied.
    """
    if not outputs:
        raise ExportError("no output was named. Pass outputs={task name: function that picks its tensors}.")
    try:
        own = copy.deepcopy(model)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} cannot be copied: {reason(error)}") from error
    refuse_bfloat16([*own.parameters(), *own.buffers()], "the model holds")
    return TaskOutputs(own.cpu(), outputs).eval()


def checked_inputs(inputs: Any, what: str) -> Inputs:
    """``inputs`` as CPU tensors, refused with ``what`` in the message unless it is a tuple of tensors."""
    if not isinstance(inputs, tuple | list) or not inputs:
        raise ExportError(
            f"{what} must be a tuple of tensors, found {type(inputs).__name__}. Write (x,) for one input."
        )
    for position, tensor in enumerate(inputs):
        if not isinstance(tensor, torch.Tensor):
            raise ExportError(f"{what}: input {position} is a {type(tensor).__name__}. Pass tensors only.")
        if not tensor.numel():
            raise ExportError(f"{what}: input {position} of shape {tuple(tensor.shape)} is empty.")
    refuse_bfloat16(inputs, f"{what} has")
    return tuple(tensor.detach().cpu().contiguous() for tensor in inputs)


def reference(model: TaskOutputs, inputs: Inputs) -> TaskTensors:
    """What PyTorch computes: the tensors of each task on ``inputs``.

    Raises:
        ExportError: the model refuses the inputs, or a task picks no tensor.
    """
    try:
        # Copies, because a forward that works in place would change the inputs that others read later.
        with torch.no_grad():
            tensors = model.by_task(*(tensor.clone() for tensor in inputs))
    except DisparseError:
        raise
    except Exception as error:
        raise ExportError(f"PyTorch refuses {shapes_text(inputs)}: {reason(error)}") from error
    for task, found in tensors.items():
        refuse_bfloat16(found, f"task {task!r} gives")
    return tensors


def refuse_bfloat16(tensors: Iterable[torch.Tensor], what: str) -> None:
    """Raise :class:`ExportError` for bfloat16, which ONNX Runtime's CPU can neither take nor give."""
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        raise ExportError(
            f"{what} bfloat16 tensors, which ONNX Runtime does not run on the CPU, so the file could not be "
            "checked. Export model.float() with float32 inputs."
        )


def output_names(tensors: TaskTensors) -> dict[str, list[str]]:
    """The ONNX output names of each task: its own name, or ``name.0``, ``name.1``, … if it has several."""
    return {
        task: [task] if len(found) == 1 else [f"{task}.{position}" for position in range(len(found))]
        for task, found in tensors.items()
    }


def input_names(model: nn.Module, count: int) -> list[str]:
    """The names of the first ``count`` parameters of ``forward``; ``input.0``, … where it takes ``*args``."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    fixed = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (fixed + [f"input.{position}" for position in range(len(fixed), count)])[:count]


def _tensors(task: str, picked: Any) -> list[torch.Tensor]:
    tensors = [picked] if isinstance(picked, torch.Tensor) else picked
    if not isinstance(tensors, list | tuple) or not tensors:
        raise ExportError(f"task {task!r} picks a {type(picked).__name__}. Pick a tensor or a list of them.")
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise ExportError(
                f"task {task!r} picks a list that holds a {type(tensor).__name__}, not a tensor."
            )
    return list(tensors)
