"""The data sets of the tables: samples, losses, figures, and the dense network on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import nyuv2 as dense_tasks
from benchmarks.data import CARD_TASKS, Batch, Loader, Samples, cards, flip, nyuv2
from benchmarks.tables.cells import Figures
from benchmarks.tables.settings import Setup
from disparse_structured.adapters.deeplab import deeplab
from disparse_structured.adapters.timm import DenseHead, Head, LinearHead, MultiTask, multitask
from disparse_structured.lab.datasets import TargetLoss, TaskSpec, evaluate, figure_of_merit
from disparse_structured.lab.metrics import Classification
from disparse_structured.tasks import Loss


class HeadMaker(Protocol):
    """From a width to the description of a head."""

    def __call__(self, width: int) -> Head: ...


@dataclass(frozen=True)
class Figure:
    """The metric of a task that tables show and ΔT is computed from."""

    task: str
    metric: str
    title: str
    higher_is_better: bool
    digits: int


@dataclass(frozen=True, eq=False)
class Problem:
    """A data set with its tasks.

    Args:
        title: for headings.
        figures: one for each task, in the order of the columns.
        specs, heads: by task.
        train: the samples to train on.
        check: the samples to report on.
        augment: applied to every batch in training.
    """

    title: str
    figures: tuple[Figure, ...]
    specs: Mapping[str, TaskSpec]
    heads: Mapping[str, HeadMaker]
    train: Samples
    check: Samples
    augment: Callable[[Batch], Batch] | None = None

    @property
    def losses(self) -> dict[str, Loss]:
        """Each task's loss over a batch."""
        return {name: TargetLoss(name, spec.loss) for name, spec in self.specs.items()}

    def evaluate(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """All metrics over the samples that are reported on, in eval mode; modes are restored."""
        return evaluate(model, Loader(self.check, 64), self.specs)

    def delta_t(self, dense: Figures, pruned: Figures) -> float:
        """ΔT in percent of two results of :meth:`evaluate`."""
        return figure_of_merit(dense, pruned, self.specs)

    def build(self, setup: Setup, seed: int) -> MultiTask:
        """The untrained network of a seed; torch's global random state is not changed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if setup.backbone == "deeplab":
                outputs = {name: dense_tasks.OUTPUTS[name] for name in self.heads}
                return deeplab(outputs, image_size=setup.size, head_width=setup.head_width)
            heads = {name: head(setup.head_width) for name, head in self.heads.items()}
            options: dict[str, Any] = dict(setup.options)
            return multitask(setup.backbone, heads, image_size=setup.size, **options)


CARD_SPECS = {
    name: TaskSpec(3, F.cross_entropy, partial(Classification, 3), "accuracy", True) for name in CARD_TASKS
}
NYUV2_FIGURES = tuple(
    Figure(task, spec.headline, dense_tasks.COLUMNS[task], spec.higher_is_better, digits)
    for (task, spec), digits in zip(dense_tasks.SPECS.items(), (3, 3, 1), strict=True)
)
CARD_FIGURES = tuple(Figure(task, "accuracy", f"{task} ↑", True, 3) for task in CARD_TASKS)
FIGURES: Mapping[str, tuple[Figure, ...]] = {"nyuv2": NYUV2_FIGURES, "cards": CARD_FIGURES}
TITLES: Mapping[str, str] = {"nyuv2": "NYU-v2", "cards": "Card photographs"}


@functools.cache
def problem(setup: Setup) -> Problem:
    """The data of a setup, read once a process; raises :class:`benchmarks.data.DataError`."""
    return {"nyuv2": _nyuv2, "cards": _cards}[setup.dataset](setup)


def _nyuv2(setup: Setup) -> Problem:
    return Problem(
        TITLES["nyuv2"],
        NYUV2_FIGURES,
        dense_tasks.SPECS,
        {name: _dense_head(outputs) for name, outputs in dense_tasks.OUTPUTS.items()},
        _some(nyuv2("train", setup.size), setup),
        nyuv2("val", setup.size),
        flip,
    )


def _cards(setup: Setup) -> Problem:
    """Reported on the photographs of another camera; on those of the same camera all methods are near 1."""
    return Problem(
        TITLES["cards"],
        CARD_FIGURES,
        CARD_SPECS,
        {name: lambda width: LinearHead(3) for name in CARD_TASKS},
        _some(_resized(cards("train"), setup.size), setup),
        _resized(cards("shift"), setup.size),
    )


def _dense_head(outputs: int) -> HeadMaker:
    return lambda width: DenseHead(outputs, width, (-4, -3, -2, -1))


def _some(samples: Samples, setup: Setup) -> Samples:
    """The first ``setup.samples`` in an order that does not depend on the seed of the run."""
    if setup.samples is None:
        return samples
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    return Samples(samples[order[: setup.samples]])


def _resized(samples: Samples, size: tuple[int, int]) -> Samples:
    return Samples({**samples.tensors, "image": F.adaptive_avg_pool2d(samples.tensors["image"], size)})
