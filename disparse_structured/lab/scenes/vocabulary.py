"""The five tasks of the scenes: the output of each head, its loss and its metric."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from disparse_structured.lab import losses
from disparse_structured.lab.metrics import Depth, MeanError, Metric, Normals, Segmentation
from disparse_structured.lab.scenes.world import CLASSES
from disparse_structured.tasks import Loss, Task

HEADS: Mapping[str, int] = MappingProxyType(
    {"segmentation": len(CLASSES), "depth": 1, "normals": 3, "edges": 1, "keypoints": 1}
)
"""Task name -> number of output channels at the image's resolution. Edges and keypoints are logits."""

TRUTHS: Mapping[str, str] = MappingProxyType(
    {
        "segmentation": "labels",
        "depth": "depth",
        "normals": "normals",
        "edges": "edges",
        "keypoints": "keypoints",
    }
)
"""Task name -> key of its ground truth in a batch."""

HEADLINES: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        "segmentation": ("miou", True),
        "depth": ("abs_error", False),
        "normals": ("mean_angle", False),
        "edges": ("l1", False),
        "keypoints": ("l1", False),
    }
)
"""Task name -> (the metric that stands for the task, whether higher is better)."""

# Bring the five losses of an untrained network to about the same size.
_WEIGHTS = {"segmentation": 0.5, "depth": 0.5, "normals": 1.0, "edges": 1.5, "keypoints": 1.5}

_LOSSES: Mapping[str, losses.TensorLoss] = {
    "segmentation": losses.cross_entropy,
    "depth": losses.depth_l1,
    "normals": losses.cosine,
    "edges": losses.binary_cross_entropy,
    "keypoints": losses.binary_cross_entropy,
}


def tasks() -> tuple[Task, ...]:
    """The five tasks for a model that returns a dict keyed by task name (see :data:`HEADS`)."""
    return tuple(
        Task(name, name, loss=_against(_LOSSES[name], truth), weight=_WEIGHTS[name])
        for name, truth in TRUTHS.items()
    )


def metrics() -> dict[str, Metric]:
    """A fresh accumulator for each task; update with ``(output, batch[TRUTHS[task]])``."""
    return {
        "segmentation": Segmentation(len(CLASSES)),
        "depth": Depth(),
        "normals": Normals(),
        "edges": MeanError(torch.sigmoid),
        "keypoints": MeanError(torch.sigmoid),
    }


def _against(loss: losses.TensorLoss, truth: str) -> Loss:
    def task_loss(output: Any, batch: Any) -> torch.Tensor:
        return loss(output, batch[truth])

    return task_loss
