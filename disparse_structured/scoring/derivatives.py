"""First and second derivatives of an objective by the gates."""

from __future__ import annotations

import torch

from disparse_structured.errors import GradientError
from disparse_structured.scoring.gates import Recorder
from disparse_structured.scoring.objectives import Objective
from disparse_structured.tasks import Task


def backpropagate(task: Task, objective: Objective, recorder: Recorder, retain: bool) -> None:
    """Fills ``recorder`` with the objective's gradients; raises :class:`GradientError` where not finite."""
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
            "Look for a square root, logarithm or division at 0 in the loss or behind that layer, or for "
            "NaN in the batch or the weights."
        )


def hessian_diagonal(
    task: Task, objective: Objective, gates: torch.Tensor, directions: torch.Tensor
) -> torch.Tensor:
    """``[units]``: ``v * (H v)``, summed over examples, averaged over ``directions [n, examples, units]``."""
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
            f"task {task.name!r}: no second derivative: {error}. Use Fisher(), which needs first ones only."
        ) from error
    if not total.isfinite().all():
        raise GradientError(
            f"task {task.name!r}: a second derivative is NaN or infinite. Look for a square root, logarithm "
            "or division at 0, or use Fisher(), which needs first derivatives only."
        )
    return total.sum(0) / len(directions)
