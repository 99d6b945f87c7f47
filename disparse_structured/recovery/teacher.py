"""The dense network as a teacher: its outputs, kept as long as they fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from disparse_structured.data.call import call
from disparse_structured.tasks import Task

Outputs = dict[str, list[Tensor]]


class Teacher:
    """Computes the outputs of ``model``, which must be in eval mode.

    Args:
        model: the dense network.
        tasks: they pick their parts of its output.
        room: bytes for outputs that are kept.
    """

    def __init__(self, model: nn.Module, tasks: Sequence[Task], room: int) -> None:
        self.model = model
        self._tasks, self._room = tuple(tasks), room
        self._kept: dict[tuple[str, int], Outputs] = {}

    def outputs(self, inputs: tuple[Any, ...], key: tuple[str, int] | None = None) -> Outputs:
        """By task, the floating-point tensors for one batch; ``key`` identifies the batch."""
        if key is not None and key in self._kept:
            return self._kept[key]
        with torch.no_grad():
            found = outputs(self.model, self._tasks, inputs)
        held = sum(tensor.nbytes for tensors in found.values() for tensor in tensors)
        if key is not None and held <= self._room:
            self._room -= held
            self._kept[key] = found
        return found


def outputs(model: nn.Module, tasks: Sequence[Task], inputs: tuple[Any, ...]) -> Outputs:
    """By task, the floating-point and complex tensors of its output."""
    fresh = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    found = call(model, fresh)
    return {
        task.name: [each for each in task.tensors(found) if each.is_floating_point() or each.is_complex()]
        for task in tasks
    }
