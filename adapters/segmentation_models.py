"""Models of segmentation-models-pytorch: ``prune(model, images, macs=0.5, drop_unused=True)``.

They return a tensor of masks, or a tuple of masks and the auxiliary classifier's labels. Encoder and decoder
are shared by both tasks as far as both read them.
"""

# ruff: noqa: E402  (a missing segmentation_models_pytorch is reported before it is imported)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from disparse_structured.errors import UnsupportedModelError, require
from disparse_structured.pipeline.pruning import prune as prune_module
from disparse_structured.pipeline.result import PruningResult
from disparse_structured.tasks import Task, named_among

require("smp", "segmentation_models_pytorch")

from segmentation_models_pytorch.base import SegmentationModel


def prune(
    model: nn.Module, images: Any, tasks: Sequence[Task | str] | None = None, **options: Any
) -> PruningResult:
    """Make a segmentation model smaller, by :func:`disparse_structured.prune`; ``model`` is left as it is.

    An encoder of depth 3, as PSPNet's by default, still holds the stages that it never runs. The report names
    them, and ``drop_unused=True`` leaves them out. :func:`disparse_structured.load` then leaves them out too.

    >>> import segmentation_models_pytorch as smp
    >>> import torch
    >>> from disparse_structured.adapters.segmentation_models import prune
    >>> model = smp.PSPNet("resnet18", encoder_weights=None, classes=5)
    >>> images = torch.rand(2, 3, 32, 32)
    >>> result = prune(model, images, macs=0.9, refit=None, drop_unused=True)
    >>> [dropped.module for dropped in result.report.dropped]
    ['encoder.layer3', 'encoder.layer4']

    Args:
        images: normalized images as the model takes them; the data of :func:`disparse_structured.prune`.
        tasks: the tasks, or their names; by default those of :func:`tasks_of`.
        options: the other options of :func:`disparse_structured.prune`.

    Raises:
        UnsupportedModelError: the model is of another library.
        TaskError: there is no task of that name.
        DisparseError: whatever :func:`disparse_structured.prune` raises.
    """
    known = tasks_of(model)
    if options.get("structure") is None:
        tasks = named_among(tasks, lambda: known)
    return prune_module(model, images, tasks, **options)


def tasks_of(model: nn.Module) -> tuple[Task, ...]:
    """Return the tasks of ``model``: ``masks`` and, with an auxiliary classifier, ``labels``.

    Raises:
        UnsupportedModelError: the model is of another library.
    """
    if not isinstance(model, SegmentationModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} comes from another library than segmentation_models_pytorch. Use "
            "disparse_structured.prune."
        )
    if model.classification_head is None:
        return (Task("masks", ()),)
    return Task("masks", 0), Task("labels", 1)
