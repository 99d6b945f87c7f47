"""Losses of dense tasks, each ``loss(output, target) -> scalar``.

Each averages over the valid pixels. It is 0, with zero gradients, if there are none, so that a batch
without annotated pixels cannot poison a training run. Nothing is resized: an output of another shape
than its target is refused, because broadcasting would hide the mismatch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from disparse_structured.errors import TaskError

TensorLoss = Callable[[Tensor, Tensor], Tensor]

IGNORED_LABEL = 255
"""The class index of unannotated pixels, as in Cityscapes, Pascal VOC and NYU-v2."""


def cross_entropy(output: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of logits ``[B, C, H, W]`` against int64 labels ``[B, H, W]``; 255 is ignored.

    ``class_weights [C]`` weight the mean by the label's class, as in torch.
    """
    _same_shape("cross_entropy", (output.shape[0], *output.shape[2:]), tuple(target.shape), output, target)
    known = target != IGNORED_LABEL
    weight = None if class_weights is None else class_weights.to(output)
    total = F.cross_entropy(output, target, weight, ignore_index=IGNORED_LABEL, reduction="sum")
    if weight is None:
        return total / known.sum().clamp(min=1)
    # An empty sum stays 0, and so does the loss over it.
    counted = weight[torch.where(known, target, 0)].where(known, 0.0).sum()
    return total / torch.where(counted > 0, counted, 1.0)


def depth_l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error ``[B, 1, H, W]`` in the target's unit; pixels without a depth > 0 are ignored."""
    return _mean_where("depth_l1", (output - _finite(target)).abs, output, target, valid_depth(target))


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error; pixels whose target is not finite are ignored."""
    return _mean_where("l1", (output - _finite(target)).abs, output, target, target.isfinite())


def binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits against targets in 0..1; non-finite targets are ignored."""

    def each() -> Tensor:
        return F.binary_cross_entropy_with_logits(output, _finite(target), reduction="none")

    return _mean_where("binary_cross_entropy", each, output, target, target.isfinite())


def cosine(output: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cos(angle) between vectors along dimension 1, ``[B, 3, H, W]``.

    The output need not be of unit length. Pixels with target (0, 0, 0) are ignored.
    """

    def each() -> Tensor:
        return 1.0 - (F.normalize(output, dim=1, eps=1e-6) * F.normalize(target, dim=1)).sum(dim=1)

    return _mean_where("cosine", each, output, target, valid_normals(target))


def valid_depth(target: Tensor) -> Tensor:
    """``bool``: where a depth was measured, that is finite and above 0."""
    return target.isfinite() & (target > 0)


def valid_normals(target: Tensor) -> Tensor:
    """``bool [B, H, W]``: where a normal ``[B, 3, H, W]`` is given, that is not (0, 0, 0)."""
    return (target != 0).any(dim=1)


def _mean_where(
    name: str, each: Callable[[], Tensor], output: Tensor, target: Tensor, counts: Tensor
) -> Tensor:
    _same_shape(name, tuple(output.shape), tuple(target.shape), output, target)
    # where(), not a product: an ignored pixel may hold anything, and 0 * inf is not 0.
    return torch.where(counts, each(), 0.0).sum() / counts.sum().clamp(min=1)


def _finite(target: Tensor) -> Tensor:
    return torch.where(target.isfinite(), target, 0.0)


def _same_shape(
    name: str, found: tuple[int, ...], wanted: tuple[int, ...], output: Tensor, target: Tensor
) -> None:
    if found != wanted:
        raise TaskError(
            f"{name}: the output has shape {tuple(output.shape)}, its target {tuple(target.shape)}. "
            "Resize one to the other, or pick another part of the model's output."
        )
