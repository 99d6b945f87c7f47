"""Distillation from a teacher, usually the dense network (Hinton et al., 2015), task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from disparse_structured.checks import check_positive
from disparse_structured.errors import TaskError

DistillationLoss = Callable[[Any, Any], Tensor]
"""Maps a task's part of the student's output and of the teacher's to a scalar."""


@dataclass(frozen=True)
class Teacher:
    """Keeps every task's output near the teacher's on the same inputs; no ground truth is needed.

    Args:
        model: runs in eval mode without gradients, on its own device and in its own type. Its modes are
            restored afterward.
        weight: factor on the sum of the distillation losses, which is added to the tasks' own losses.
            ``Task.weight`` balances the scales of the tasks' own losses, so it does not apply here.
        losses: loss by task name, in place of :func:`relative_error`.
    """

    model: nn.Module
    weight: float = 1.0
    losses: Mapping[str, DistillationLoss] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_positive(weight=self.weight)


def relative_error(student: Any, teacher: Any) -> Tensor:
    """Squared error over the teacher's variance, averaged over the floating-point tensors of two outputs.

    A student that always predicts the teacher's mean has an error of 1. Meters, logits and unit vectors
    are thus on one scale. With a plain squared error, the tasks would need weights to balance them.

    Raises:
        TaskError: the outputs differ in shape, or hold no floating-point tensor.
    """
    ours, theirs = _tensors(student), _tensors(teacher)
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs] or not ours:
        raise TaskError(
            f"student and teacher return tensors of shapes {[tuple(t.shape) for t in ours]} and "
            f"{[tuple(t.shape) for t in theirs]}, which cannot be compared. "
            "Pass Teacher(..., losses={task name: function of (student, teacher)})."
        )
    return torch.stack([_relative(one, other) for one, other in zip(ours, theirs, strict=True)]).mean()


def _relative(student: Tensor, teacher: Tensor) -> Tensor:
    variance, power = teacher.var(correction=0), teacher.square().mean()
    # A constant output has no variance: scale by its size instead, or by 1 if it is zero.
    scale = torch.where(variance > 1e-6 * power, variance, torch.where(power > 0, power, 1.0))
    return (student - teacher).square().mean() / scale


def _tensors(picked: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(picked)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
