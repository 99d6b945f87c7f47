"""How far a pruned network's outputs are from the dense one's, task by task, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from disparse_structured.data.modes import eval_mode
from disparse_structured.tasks import Task


@torch.no_grad()
def deviation(
    dense: nn.Module,
    pruned: nn.Module,
    images: Tensor,
    tasks: Sequence[Task],
    batch_size: int = 64,
) -> dict[str, float]:
    """``‖pruned(x) - dense(x)‖₂ / ‖dense(x)‖₂`` of each task's output, both norms over all images at once.

    0 for the dense network itself, 1 for one whose outputs are zero. Both models are called in eval mode, and
    their modes are restored. Sums are in float64, so that the batch size does not matter.

    Args:
        dense: the reference.
        pruned: has outputs of the same form.
        images: ``[N, C, H, W]``; not those that pruning or compensation was calibrated on.
        tasks: pick the outputs; losses are not needed.
        batch_size: images in one call.

    Raises:
        ValueError: there is no image, the outputs of a task have different shapes, or the dense output of a
            task is zero everywhere.
    """
    if not len(images):
        raise ValueError("images is empty: the deviation needs at least one image.")
    with eval_mode(dense, pruned):
        return distance(((pruned(batch), dense(batch)) for batch in images.split(batch_size)), tasks)


def distance(pairs: Iterable[tuple[Any, Any]], tasks: Sequence[Task]) -> dict[str, float]:
    """:func:`deviation` of known outputs: pairs of the pruned network's and the dense one's.

    Raises:
        ValueError: the outputs of a task have different shapes, or the dense output of a task is zero
            everywhere.
    """
    error, power = ({task.name: 0.0 for task in tasks} for _ in range(2))
    for found, reference in pairs:
        for task in tasks:
            off, size = _distance(task, found, reference)
            error[task.name] += off
            power[task.name] += size
    silent = [name for name, value in power.items() if not value]
    if silent:
        raise ValueError(f"the dense output of {silent} is zero on all images; its deviation is undefined.")
    return {name: (error[name] / power[name]) ** 0.5 for name in error}


def _distance(task: Task, found: Any, reference: Any) -> tuple[float, float]:
    """Squared norms of the difference and of the reference."""
    ours, theirs = task.tensors(found), task.tensors(reference)
    shapes = [[tuple(tensor.shape) for tensor in some] for some in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"task {task.name!r}: the pruned output has shapes {shapes[0]}, the dense one {shapes[1]}. "
            "Compare networks with the same outputs."
        )
    pairs = [(one.double(), other.double()) for one, other in zip(ours, theirs, strict=True)]
    off = sum(float((one - other).square().sum()) for one, other in pairs)
    return off, sum(float(other.square().sum()) for _, other in pairs)
