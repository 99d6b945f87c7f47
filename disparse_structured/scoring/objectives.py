"""What is differentiated for a task: its loss, or, without one, random projections of its output.

The projection of a task without a loss is ``sum(v * output) / sqrt(n)`` for each sample, with random
signs ``v`` and ``n`` output elements per sample. The mean over ``v`` of its squared derivative is the
mean over the output's elements of their squared derivatives: the diagonal of the Gauss-Newton matrix
of a squared distance, as in Hutchinson's trace estimator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from disparse_structured.data.precision import as_real, is_inexact
from disparse_structured.data.randomness import generator, signs
from disparse_structured.errors import DisparseError, TaskError
from disparse_structured.tasks import Task


@dataclass(frozen=True, eq=False)
class Objective:
    """``outputs``, and the gradient at each of them, as :func:`torch.autograd.grad` takes them."""

    outputs: tuple[torch.Tensor, ...]
    gradients: tuple[torch.Tensor, ...]


class Packing:
    """Puts a task's tensors back into what its selector picked, as its loss expects it."""

    def __init__(self, task: Task, output: Any) -> None:
        picked = task.pick(output)
        plain = not isinstance(picked, torch.Tensor | Mapping | list | tuple) and hasattr(picked, "__dict__")
        self._object = picked if plain else None
        self._leaves, self._spec = pytree.tree_flatten(vars(picked) if plain else picked)
        for leaf in self._leaves:
            if not isinstance(leaf, torch.Tensor | int | float | str | None):
                raise TaskError(
                    f"task {task.name!r}: its selector picks a {type(picked).__name__} that holds a "
                    f"{type(leaf).__name__}; its loss can be evaluated on tensors and containers of "
                    "tensors. Let the selector point further in."
                )

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        """What was picked, holding ``tensors`` instead of its own."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in self._leaves]
        content = pytree.tree_unflatten(leaves, self._spec)
        if self._object is None:
            return content
        result = copy.copy(self._object)
        vars(result).update(content)
        return result


def labeled(task: Task, packing: Packing, tensors: Sequence[torch.Tensor], batch: Any) -> Objective:
    """Compute the task's loss on ``batch``, to be differentiated; raise as :func:`loss_of` does."""
    loss = loss_of(task, packing, tensors, batch)
    return Objective((loss,), (torch.ones_like(loss),)) if loss.requires_grad else Objective((), ())


def loss_of(task: Task, packing: Packing, tensors: Sequence[torch.Tensor], batch: Any) -> torch.Tensor:
    """Compute the task's loss; raise :class:`TaskError` unless it is a finite scalar of its output."""
    assert task.loss is not None
    picked = packing(tensors)
    try:
        loss = task.loss(picked, batch)
    except (DisparseError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: its loss raised {type(error).__name__}: {error} on "
            f"outputs {[tuple(tensor.shape) for tensor in tensors]}. "
            "Check that loss(output, batch) fits the selector and the batch."
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        found = f"{loss.dtype} {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise TaskError(
            f"task {task.name!r}: its loss returned {found}; expected a floating-point tensor with one "
            "value. Reduce it, for example by .mean()."
        )
    if not loss.isfinite():
        raise TaskError(
            f"task {task.name!r}: its loss is {loss.item()}. Look for NaN in the batch or the weights, "
            "empty or wrong targets, or an overflow."
        )
    if not loss.requires_grad and any(tensor.requires_grad for tensor in tensors):
        raise TaskError(
            f"task {task.name!r}: its loss does not depend on its output through autograd. "
            "Compute it from the output without detach(), no_grad(), argmax or NumPy."
        )
    return loss


@dataclass(eq=False)
class Projections:
    """The random projections of all label-free tasks over one pass through the data.

    Each task, tensor and projection has one stream of signs, drawn in sample order: the same however
    the loader cuts the samples into batches.
    """

    seed: int

    def __post_init__(self) -> None:
        self._sources: dict[tuple[str, int, int], np.random.Generator] = {}

    def __call__(self, task: Task, number: int, tensors: Sequence[torch.Tensor], batch: int) -> Objective:
        """Projection ``number`` of the task's output, averaged over a batch of ``batch`` samples."""
        kept = _differentiable(task, tensors)
        scale = _scale(kept, batch)
        outputs, gradients = [], []
        for position, tensor in kept:
            key = task.name, position, number
            source = self._sources.setdefault(key, generator(self.seed, "projection", *key))
            rows = batch if tensor.numel() % batch == 0 else 1
            drawn = signs(source, rows, tensor.numel() // rows)
            if tensor.requires_grad:
                outputs.append(tensor)
                gradients.append(drawn.to(tensor.device, tensor.dtype).mul_(scale).view(tensor.shape))
        return Objective(tuple(outputs), tuple(gradients))


def weighted_sum(objectives: Sequence[Objective], weights: Sequence[float]) -> Objective:
    """Sum ``objectives``, each times its weight."""
    return Objective(
        tuple(output for each in objectives for output in each.outputs),
        tuple(
            weight * gradient
            for each, weight in zip(objectives, weights, strict=True)
            for gradient in each.gradients
        ),
    )


def squared_distance(task: Task, tensors: Sequence[torch.Tensor], batch: int) -> Objective:
    """Return half the mean squared distance of the output from itself: zero, but with a Hessian."""
    kept = _differentiable(task, tensors)
    scale = _scale(kept, batch) ** 2 * batch
    moved = [tensor for _, tensor in kept if tensor.requires_grad]
    if not moved:
        return Objective((), ())
    distance = torch.stack([(tensor - tensor.detach()).square().sum() for tensor in moved]).sum()
    loss = distance * (scale / 2)
    return Objective((loss,), (torch.ones_like(loss),))


def _differentiable(task: Task, tensors: Sequence[torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
    found = [
        (i, as_real(tensor)) for i, tensor in enumerate(tensors) if is_inexact(tensor) and tensor.numel()
    ]
    if not found:
        raise TaskError(
            f"task {task.name!r} has no loss, and its output {[str(tensor.dtype) for tensor in tensors]} "
            "cannot be differentiated. Point its selector at real or complex values, such as logits."
        )
    return found


def _scale(tensors: Sequence[tuple[int, torch.Tensor]], batch: int) -> float:
    """1 / sqrt(elements per sample), for the mean over the samples."""
    elements = sum(tensor.numel() for _, tensor in tensors)
    return 1.0 / (math.sqrt(elements / batch) * batch)
