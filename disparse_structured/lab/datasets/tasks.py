"""The tasks of a data set: widths, losses, metrics and published weights; and their evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from disparse_structured.data.batches import ToInputs, batches, call_model, to_device
from disparse_structured.data.modes import eval_mode
from disparse_structured.errors import TaskError
from disparse_structured.lab import losses
from disparse_structured.lab.losses import TensorLoss
from disparse_structured.lab.metrics import Depth, MeanError, Metric, Normals, Segmentation, delta_t
from disparse_structured.tasks import Task


@dataclass(frozen=True)
class TaskSpec:
    """One dense task of a data set.

    Args:
        outputs: channels of the model's output.
        loss: ``loss(output, target) -> scalar``.
        metric: makes an empty accumulator.
        headline: the figure of the metric that represents the task in ΔT.
        higher_is_better: whether a higher headline is better.
        weight: the task's weight in the training loss, as published.
    """

    outputs: int
    loss: TensorLoss
    metric: Callable[[], Metric]
    headline: str
    higher_is_better: bool
    weight: float = 1.0


@dataclass(frozen=True)
class TargetLoss:
    """A task's loss over a batch that is a dict: ``loss(output, batch[target])``."""

    target: str
    loss: TensorLoss

    def __call__(self, output: Any, batch: Any) -> Tensor:
        """The loss; raises :class:`TaskError` if the batch holds no such target."""
        return self.loss(output, _target(batch, self.target))


def nyuv2_tasks(classes: int = 40, depth: bool = True) -> dict[str, TaskSpec]:
    """NYU-v2: segmentation and normals weigh 1 : 20 (DiSparse, §4.1), and depth 3 (AdaShare's code)."""
    specs = {"segmentation": _segmentation(classes, 1), "normals": _normals(20)}
    return specs | ({"depth": _depth(3)} if depth else {})


def cityscapes_tasks(classes: int = 19) -> dict[str, TaskSpec]:
    """Cityscapes: segmentation and depth weigh 1 : 20 (DiSparse, §4.1)."""
    return {"segmentation": _segmentation(classes, 1), "depth": _depth(20)}


def taskonomy_tasks(class_weights: Tensor | None = None) -> dict[str, TaskSpec]:
    """Tiny-Taskonomy: five tasks of weights 1, 3, 2, 7 and 7 (DiSparse, §4.1).

    Args:
        class_weights: ``[17]``, of the classes in the segmentation loss: the ``semseg_prior_factor.npy``
            of Taskonomy's code, with which the two papers train. All 1 by default.
    """
    return {
        "segmentation": _segmentation(17, 1, class_weights),
        "normals": _normals(3),
        "depth": _depth(2),
        "keypoints": _map(7),
        "edges": _map(7),
    }


def dataset_tasks(
    specs: Mapping[str, TaskSpec], weights: Mapping[str, float] | None = None
) -> tuple[Task, ...]:
    """One :class:`Task` per spec, for models and batches that give a dict by task name.

    Args:
        specs: from :func:`nyuv2_tasks` and the like.
        weights: training weights that replace the published ones.

    Raises:
        TaskError: ``weights`` names an unknown task.
    """
    weights = weights or {}
    unknown = [name for name in weights if name not in specs]
    if unknown:
        raise TaskError(f"weights are given for {unknown}, but the tasks are {list(specs)}. Use their names.")
    return tuple(
        Task(name, name, TargetLoss(name, spec.loss), weights.get(name, spec.weight))
        for name, spec in specs.items()
    )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    specs: Mapping[str, TaskSpec],
    *,
    to_inputs: ToInputs | None = None,
) -> dict[str, dict[str, float]]:
    """Every figure of every task over the batches of ``loader``: ``{task: {figure: value}}``.

    The model is called in eval mode, on its own device and in its own floating-point type; its modes are
    restored afterward.

    Args:
        model: returns a dict by task.
        loader: batches that are dicts by task, such as a DataLoader over
            :class:`~disparse_structured.lab.datasets.samples.Samples`.
        specs: the tasks.
        to_inputs: from a batch to ``forward``'s arguments; by default
            :func:`disparse_structured.data.batches.model_inputs`.

    Raises:
        TaskError: model or batch lacks a task, or a target does not fit the output.
        BatchError: the loader is empty, or the model refuses a batch.
    """
    accumulators = {name: spec.metric() for name, spec in specs.items()}
    parameter = next(model.parameters(), torch.empty(0))
    with eval_mode(model):
        for batch in batches(loader):
            output = call_model(model, to_device(batch, parameter.device, parameter.dtype), to_inputs)
            for name, accumulator in accumulators.items():
                accumulator.update(Task(name, name).pick(output), _target(batch, name))
    return {name: accumulator.compute() for name, accumulator in accumulators.items()}


def figure_of_merit(
    dense: Mapping[str, Mapping[str, float]],
    pruned: Mapping[str, Mapping[str, float]],
    specs: Mapping[str, TaskSpec],
) -> float:
    """ΔT in percent of two results of :func:`evaluate`, by the tasks' headline figures; higher is better.

    See :func:`disparse_structured.lab.metrics.delta_t`. Raises :class:`TaskError` when a result lacks a task.
    """
    return delta_t(
        _headlines(dense, specs),
        _headlines(pruned, specs),
        {name: spec.higher_is_better for name, spec in specs.items()},
    )


def _headlines(figures: Mapping[str, Mapping[str, float]], specs: Mapping[str, TaskSpec]) -> dict[str, float]:
    return {name: figures[name][spec.headline] for name, spec in specs.items() if name in figures}


def _target(batch: Any, name: str) -> Tensor:
    if not isinstance(batch, Mapping) or name not in batch:
        found = f"the keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise TaskError(
            f"task {name!r}: the batch has no target of that name, but {found}. Yield dicts with one entry "
            "per task, or leave the task out of the specs."
        )
    target: Tensor = batch[name]
    return target


def _segmentation(classes: int, weight: float, class_weights: Tensor | None = None) -> TaskSpec:
    loss: TensorLoss = losses.cross_entropy
    if class_weights is not None:
        if class_weights.shape != (classes,):
            raise TaskError(
                f"class_weights has shape {tuple(class_weights.shape)}; expected ({classes},), one per class."
            )
        loss = partial(losses.cross_entropy, class_weights=class_weights)
    return TaskSpec(classes, loss, partial(Segmentation, classes), "miou", True, weight)


def _normals(weight: float) -> TaskSpec:
    return TaskSpec(3, losses.cosine, Normals, "mean_angle", False, weight)


def _depth(weight: float) -> TaskSpec:
    return TaskSpec(1, losses.depth_l1, Depth, "abs_error", False, weight)


def _map(weight: float) -> TaskSpec:
    return TaskSpec(1, losses.l1, MeanError, "l1", False, weight)
