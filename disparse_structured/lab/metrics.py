"""Metrics of dense tasks as streaming accumulators, and the multi-task figure of merit.

An accumulator takes batches by ``update(output, target)`` and returns its figures by
``compute() -> dict``. Memory does not grow with the data. Before the first valid pixel, every figure is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from disparse_structured.errors import TaskError
from disparse_structured.lab.losses import IGNORED_LABEL, valid_depth, valid_normals


class Metric(Protocol):
    """An accumulator of one task's figures."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""

    def compute(self) -> dict[str, float]:
        """The figures over all batches so far."""


class _Confusion:
    """Counts of (class in the truth, class predicted), with one more column for NaN outputs."""

    def __init__(self, name: str, classes: int, ignored: int | None) -> None:
        self._name = name
        self._ignored = ignored
        self._counts = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits ``[B, C, ...]`` and labels ``[B, ...]``."""
        classes = len(self._counts)
        _check_shapes(self._name, output, target, (len(output), *output.shape[2:]))
        output = output.detach()
        # A diverged network's NaN would win the argmax, and might even be right.
        predicted = output.argmax(dim=1).masked_fill(output.isnan().any(dim=1), classes).cpu()
        truth = target.cpu()
        if output.shape[1] != classes:
            raise TaskError(
                f"{self._name}: the output has {output.shape[1]} classes, the metric {classes}. "
                "Give the metric the model's number of classes."
            )
        if self._ignored is not None:
            counts = truth != self._ignored
            predicted, truth = predicted[counts], truth[counts]
        strange = truth[(truth < 0) | (truth >= classes)]
        if strange.numel():
            ignored = "" if self._ignored is None else f" or {self._ignored} (ignored)"
            raise TaskError(
                f"{self._name}: found class {int(strange[0])}, expected 0 to {classes - 1}{ignored}. "
                "Give the metric the model's number of classes, and mark unknown labels as ignored."
            )
        pairs = torch.bincount(
            truth.flatten() * (classes + 1) + predicted.flatten(), minlength=classes**2 + classes
        )
        self._counts += pairs.view_as(self._counts)

    @property
    def hits(self) -> Tensor:
        return self._counts.diagonal().double()

    @property
    def truths(self) -> Tensor:
        return self._counts.sum(1).double()

    @property
    def predictions(self) -> Tensor:
        return self._counts[:, :-1].sum(0).double()


class Segmentation:
    """``miou`` and ``pixel_accuracy``, from a confusion matrix of ``classes`` x ``classes``.

    ``update`` takes logits ``[B, C, H, W]`` and int64 labels ``[B, H, W]``; 255 is ignored. The mean
    of the intersection over union is taken over the classes that occur in the truth or the prediction.
    (DiSparse's code leaves out every class without a single hit, which can favor a worse network, and
    averages accuracy over batches.) Raises :class:`TaskError` for a label that is not a class.
    """

    def __init__(self, classes: int) -> None:
        self._confusion = _Confusion("segmentation", classes, IGNORED_LABEL)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        self._confusion.update(output, target)

    def compute(self) -> dict[str, float]:
        """``miou`` and ``pixel_accuracy``, in 0..1."""
        hits, truths = self._confusion.hits, self._confusion.truths
        union = truths + self._confusion.predictions - hits
        present = union > 0
        return {
            "miou": (hits[present] / union[present]).mean().item(),
            "pixel_accuracy": (hits.sum() / truths.sum()).item(),
        }


class Classification:
    """``accuracy`` (share of samples) and ``class_accuracy`` (mean over the classes that occur in the truth).

    ``update`` takes logits ``[B, C]`` and int64 labels ``[B]``; ``ignored`` marks samples without a label
    (None: there are none, and every label is a class). Raises :class:`TaskError` for a label that is
    not a class.
    """

    def __init__(self, classes: int, ignored: int | None = IGNORED_LABEL) -> None:
        self._confusion = _Confusion("classification", classes, ignored)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        self._confusion.update(output, target)

    def compute(self) -> dict[str, float]:
        """``accuracy`` and ``class_accuracy``, in 0..1."""
        hits, truths = self._confusion.hits, self._confusion.truths
        present = truths > 0
        return {
            "accuracy": (hits.sum() / truths.sum()).item(),
            "class_accuracy": (hits[present] / truths[present]).mean().item(),
        }


class Depth:
    """``abs_error`` (meters), ``rel_error``, and ``delta1`` to ``delta3``, over pixels with a depth > 0.

    delta_i is the share of pixels with max(output / target, target / output) < 1.25 ** i (Eigen et
    al., NeurIPS 2014); an output of 0 or less is outside all of them.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of ``[B, 1, H, W]``."""
        _check_shapes("depth", output, target, tuple(output.shape))
        counts = valid_depth(target)
        found, truth = _exact(output[counts]), _exact(target[counts])
        error = (found - truth).abs()
        ratio = torch.where(found > 0, torch.maximum(found / truth, truth / found), math.inf)
        shares = [(ratio < 1.25**power).sum() for power in (1, 2, 3)]
        self._sums += torch.stack((error.sum(), (error / truth).sum(), *shares))
        self._count += truth.numel()

    def compute(self) -> dict[str, float]:
        """The five means."""
        names = ("abs_error", "rel_error", "delta1", "delta2", "delta3")
        return dict(zip(names, (self._sums / _or_nan(self._count)).tolist(), strict=True))


class Normals:
    """Angles in degrees: ``mean_angle``, ``median_angle``, ``within_11.25``, ``within_22.5``, ``within_30``.

    Outputs need not be of unit length; a zero output counts as an error of 90 degrees. Pixels with target
    (0, 0, 0) are ignored. The median comes from a histogram with bins of 0.01 degrees.
    """

    _BINS_PER_DEGREE = 100
    _LIMITS = (11.25, 22.5, 30.0)

    def __init__(self) -> None:
        self._histogram = torch.zeros(180 * self._BINS_PER_DEGREE, dtype=torch.int64)
        self._sum = 0.0
        self._within = torch.zeros(len(self._LIMITS), dtype=torch.int64)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of ``[B, 3, H, W]``."""
        _check_shapes("normals", output, target, tuple(output.shape))
        counts = valid_normals(target)
        found, truth = (_exact(values).movedim(1, -1)[counts.cpu()] for values in (output, target))
        # atan2 keeps its precision near 0 and 180 degrees, where acos loses it.
        across = torch.linalg.cross(found, truth).norm(dim=-1)
        angle = torch.rad2deg(torch.atan2(across, (found * truth).sum(dim=-1)))
        angle[(found == 0).all(dim=-1)] = 90.0
        # A diverged network's NaN makes the mean NaN, and is as wrong as can be for the rest.
        bins = (angle.nan_to_num(180.0) * self._BINS_PER_DEGREE).long().clamp(max=len(self._histogram) - 1)
        self._histogram += torch.bincount(bins, minlength=len(self._histogram))
        self._sum += angle.sum().item()
        self._within += torch.stack([(angle < limit).sum() for limit in self._LIMITS])

    def compute(self) -> dict[str, float]:
        """Mean and median in degrees, and the shares (0..1) below 11.25, 22.5 and 30 degrees."""
        count = int(self._histogram.sum())
        figures = {"mean_angle": self._sum / _or_nan(count), "median_angle": self._median(count)}
        for limit, within in zip(self._LIMITS, self._within.tolist(), strict=True):
            figures[f"within_{limit:g}"] = within / _or_nan(count)
        return figures

    def _median(self, count: int) -> float:
        if not count:
            return math.nan
        reached = self._histogram.cumsum(0)
        middle = [int(torch.searchsorted(reached, rank)) for rank in ((count + 1) // 2, count // 2 + 1)]
        return (sum(middle) / 2 + 0.5) / self._BINS_PER_DEGREE


class MeanError:
    """``l1``: the mean absolute error over finite targets, for edges and keypoints.

    Args:
        activation: applied to the output first, such as ``torch.sigmoid`` to logits.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        self._activation = activation
        self._sum = 0.0
        self._count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of any shape."""
        _check_shapes("l1", output, target, tuple(output.shape))
        counts = target.isfinite()
        found = _exact(output[counts])
        if self._activation is not None:
            found = self._activation(found)
        self._sum += (found - _exact(target[counts])).abs().sum().item()
        self._count += found.numel()

    def compute(self) -> dict[str, float]:
        """``l1``."""
        return {"l1": self._sum / _or_nan(self._count)}


def delta_t(
    dense: Mapping[str, float], pruned: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> float:
    """The mean effect of pruning on all tasks, in percent; above 0 the pruned model is better.

    The mean over tasks of the relative change of each task's one figure, with the sign turned where
    lower is better (Vandenhende et al., "Multi-Task Learning for Dense Prediction Tasks: A Survey",
    TPAMI 2021, section 4.2).

    Raises :class:`TaskError` when the three do not name the same tasks, or a dense figure is 0 or not
    finite, for which a relative change is undefined.
    """
    if not higher_is_better or not dense.keys() == pruned.keys() == higher_is_better.keys():
        raise TaskError(
            f"delta_t: the dense model's figures are of {sorted(dense)}, the pruned model's of "
            f"{sorted(pruned)}, the directions of {sorted(higher_is_better)}. Name the same tasks in all "
            "three."
        )
    total = 0.0
    for task, higher in higher_is_better.items():
        if dense[task] == 0 or not math.isfinite(dense[task]):
            raise TaskError(
                f"delta_t: task {task!r} has the dense figure {dense[task]}, so a relative change is "
                "undefined. Leave the task out, or use another metric."
            )
        change = (pruned[task] - dense[task]) / abs(dense[task])
        total += change if higher else -change
    return 100.0 * total / len(higher_is_better)


def _exact(values: Tensor) -> Tensor:
    return values.detach().cpu().double()


def _or_nan(count: int) -> float:
    return count or math.nan


def _check_shapes(name: str, output: Tensor, target: Tensor, found: tuple[int, ...]) -> None:
    if found != tuple(target.shape):
        raise TaskError(
            f"{name}: the output has shape {tuple(output.shape)}, its target {tuple(target.shape)}. "
            "Resize one to the other before the update."
        )
