"""Derivatives of an objective with respect to the gates (first and second) and weights (first)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from disparse_structured.errors import GradientError
from disparse_structured.scoring.gates import Recorder
from disparse_structured.scoring.objectives import Objective
from disparse_structured.tasks import Task


@dataclass(frozen=True, eq=False)
class GateGradients:
    """Gate gradients of one task.

    Args:
        task: the task's row.
        values: float64 ``[rows, units]`` on the CPU. Each row is the gradient of one sample's own loss,
            or of the mean loss of a batch. Units that the task does not reach have 0.
        weight: how many samples each row stands for, divided by the number of projections.
    """

    task: int
    values: torch.Tensor
    weight: float


@dataclass(frozen=True, eq=False)
class GateCurvature:
    """An estimate of the second derivatives of one task's mean loss over a batch of ``weight`` samples.

    ``diagonal`` is float64 ``[units]`` on the CPU.
    """

    task: int
    diagonal: torch.Tensor
    weight: float


@dataclass(frozen=True, eq=False)
class WeightGradients:
    """Parameter gradients of every task's loss on one batch, or one sample.

    Args:
        tasks: for each task, the gradients by parameter name; 0 where the loss does not depend on it.
            A single entry where the tasks' losses are summed.
        weight: how many samples the losses are averaged over.
    """

    tasks: tuple[dict[str, torch.Tensor], ...]
    weight: int


def backpropagate(task: Task, objective: Objective, recorder: Recorder, retain: bool) -> None:
    """Fill ``recorder`` with the objective's gradients; raise :class:`GradientError` if not finite."""
    if not objective.outputs:
        return
    try:
        torch.autograd.grad(
            objective.outputs,
            recorder.switch,
            objective.gradients,
            retain_graph=retain,
            allow_unused=True,
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise GradientError(
            f"task {task.name!r}: the backward pass failed: {error}. "
            "Use a loss and layers that autograd supports."
        ) from error
    layer = recorder.first_bad_layer()
    if layer is not None:
        raise GradientError(
            f"task {task.name!r}: the gradient at the input of layer {layer!r} is NaN or infinite. "
            "Look for a square root, logarithm or division at 0 in the loss or after that layer, or for "
            "NaN in the batch or the weights."
        )


def weight_gradients(
    name: str, objective: Objective, weights: Mapping[str, torch.Tensor], retain: bool
) -> dict[str, torch.Tensor]:
    """Return the gradient of each of ``weights``, 0 where the objective does not depend on it.

    Errors call the objective ``name``.

    Raises:
        GradientError: the backward pass fails, or a gradient is NaN or infinite.
    """
    if not objective.outputs:
        return {each: torch.zeros_like(weight) for each, weight in weights.items()}
    try:
        found = torch.autograd.grad(
            objective.outputs,
            list(weights.values()),
            objective.gradients,
            retain_graph=retain,
            allow_unused=True,
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise GradientError(
            f"{name}: the backward pass failed: {error}. Use a loss and layers that autograd supports."
        ) from error
    gradients = {
        each: torch.zeros_like(weight) if gradient is None else gradient
        for (each, weight), gradient in zip(weights.items(), found, strict=True)
    }
    for each, gradient in gradients.items():
        if not gradient.isfinite().all():
            raise GradientError(
                f"{name}: the gradient of {each!r} is NaN or infinite. Look for a square root, "
                "logarithm or division at 0 in the loss or the network, or for NaN in the batch or the "
                "weights."
            )
    return gradients


def hessian_diagonal(
    task: Task, objective: Objective, gates: torch.Tensor, directions: torch.Tensor
) -> torch.Tensor:
    """Sum ``v * (H v)`` over examples and average over ``directions [n, examples, units]``: ``[units]``."""
    total = torch.zeros_like(gates)
    if not objective.outputs:
        return total.sum(0)
    try:
        (first,) = torch.autograd.grad(
            objective.outputs, gates, objective.gradients, create_graph=True, allow_unused=True
        )
        if first is None or not first.requires_grad:
            return total.sum(0)
        for v in directions:
            (product,) = torch.autograd.grad(first, gates, v, retain_graph=True, allow_unused=True)
            if product is not None:
                total += v * product
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise GradientError(
            f"task {task.name!r}: no second derivative: {error}. Use Fisher(), which needs only the first."
        ) from error
    if not total.isfinite().all():
        raise GradientError(
            f"task {task.name!r}: a second derivative is NaN or infinite. Look for a square root, logarithm "
            "or division at 0, or use Fisher(), which needs only first derivatives."
        )
    return total.sum(0) / len(directions)
