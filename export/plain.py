"""A copy of a model as a function from tensors to the tensors of its tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import as_arguments
from disparse_structured.data.call import call, named_leaves
from disparse_structured.errors import BatchError, DisparseError, ExportError
from disparse_structured.export.reasons import reason
from disparse_structured.export.session import shapes_text
from disparse_structured.graph.copies import copied

Outputs = Mapping[str, Callable[[Any], Any]]
"""Task name -> function that picks the task's tensor, or list of tensors, from what the model returns."""

Inputs = tuple[torch.Tensor, ...]

TaskTensors = Mapping[str, Sequence[torch.Tensor]]
"""Task name -> its tensors."""


@dataclass(frozen=True)
class Binding:
    """How the tensors that a file takes become the arguments of ``forward``.

    Args:
        names: of the tensors: parameters of ``forward``, with the path to a tensor inside one.
        constants: everything else in the arguments, by the same kind of name. The file fixes it.
    """

    names: tuple[str, ...]
    constants: Mapping[str, Any]
    _leaves: tuple[Any, ...]
    _spec: pytree.TreeSpec

    @classmethod
    def of(cls, model: nn.Module, given: tuple[Any, ...]) -> Binding:
        """Bind what :func:`arguments_of` returned."""
        leaves, spec = pytree.tree_flatten(given)
        named = named_leaves(model.forward, given)
        tensors = tuple(name for name, leaf in named if isinstance(leaf, torch.Tensor))
        constants = {name: leaf for name, leaf in named if not isinstance(leaf, torch.Tensor)}
        return cls(tensors, constants, tuple(_constant(leaf) for leaf in leaves), spec)

    def arguments(self, tensors: Iterable[torch.Tensor]) -> tuple[Any, ...]:
        """Return the arguments of ``forward`` that hold ``tensors``."""
        given = iter(tensors)
        leaves = [next(given) if leaf is _TENSOR else leaf for leaf in self._leaves]
        arguments: tuple[Any, ...] = pytree.tree_unflatten(leaves, self._spec)
        return arguments


def arguments_of(model: nn.Module, inputs: Any, what: str) -> tuple[Any, ...]:
    """Return ``inputs`` as the arguments of ``forward``, in its own order.

    Raises:
        ExportError: ``forward`` does not take them.
    """
    try:
        return as_arguments(model, tuple(inputs) if isinstance(inputs, list) else inputs)
    except BatchError as error:
        raise ExportError(f"{what}: {error}") from None


class _TENSOR:
    """Stands for a tensor among the constants; a class, because copying does not change its identity."""


def _constant(leaf: Any) -> Any:
    return _TENSOR if isinstance(leaf, torch.Tensor) else leaf


class TaskOutputs(nn.Module):
    """Returns exactly the tensors of the tasks, in the order of ``outputs``, as a flat tuple."""

    def __init__(self, model: nn.Module, outputs: Outputs, binding: Binding) -> None:
        super().__init__()
        self.model = model
        self.pickers = dict(outputs)
        self.binding = binding

    def forward(self, *inputs: torch.Tensor) -> Inputs:
        """The tensors of all tasks, in order."""
        return tuple(tensor for tensors in self.by_task(*inputs).values() for tensor in tensors)

    def by_task(self, *inputs: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """The tensors of each task."""
        returned = call(self.model, self.binding.arguments(inputs))
        return {task: _tensors(task, pick(returned)) for task, pick in self.pickers.items()}


def plain_copy(model: nn.Module, outputs: Outputs, binding: Binding) -> TaskOutputs:
    """A copy of ``model`` on the CPU in eval mode that returns the tensors of its tasks.

    Everything else works on this copy, so nothing can change the user's model: its weights, buffers,
    modes, hooks and device are not changed.

    Raises:
        ExportError: there is no task, or the model cannot be copied.
    """
    if not outputs:
        raise ExportError("no output was named. Pass outputs={task name: function that picks its tensors}.")
    try:
        own = copied(model)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} cannot be copied: {reason(error)}") from error
    refuse_bfloat16([*own.parameters(), *own.buffers()], "the model holds")
    return TaskOutputs(own.cpu(), outputs, binding).eval()


def checked_inputs(inputs: Any, what: str) -> Inputs:
    """Return the tensors in ``inputs`` on the CPU; raise with ``what`` in the message if there are none."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise ExportError(f"{what} must hold a tensor, found {type(inputs).__name__} {inputs!r:.80}.")
    for position, tensor in enumerate(tensors):
        if not tensor.numel():
            raise ExportError(f"{what}: input {position} of shape {tuple(tensor.shape)} is empty.")
    refuse_bfloat16(tensors, f"{what} has")
    return tuple(tensor.detach().cpu().contiguous() for tensor in tensors)


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
