"""What all methods get: a trained network, some images, and its structure, each computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.data import Batch
from benchmarks.harness.files import CACHE
from benchmarks.joint import joint_task
from benchmarks.no_training.networks import Network, calibration, labeled, problem, trained
from benchmarks.tables.problems import Problem
from disparse_structured.adapters.timm import MultiTask
from disparse_structured.data.modes import eval_mode
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import decide
from disparse_structured.decision.rankings import Ranking
from disparse_structured.scoring import Criterion, score
from disparse_structured.structure import Structure, analyse
from disparse_structured.tasks import Task

T = TypeVar("T")

INPUTS = 64
"""The default number of calibration images."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A trained network of one seed and what it is pruned with. Methods must not change any of it.

    Args:
        network: the architecture, its data and its training.
        seed: random seed of the training and of the choice of images.
        count: how many images to calibrate on.
        cache: where trained networks are kept.
    """

    network: Network
    seed: int
    count: int = INPUTS
    cache: Path = CACHE
    _known: dict[Hashable, tuple[Any, float]] = field(default_factory=dict)
    _saved: list[float] = field(default_factory=list)

    @cached_property
    def model(self) -> MultiTask:
        """The dense network in eval mode."""
        return trained(self.network, self.seed, self.cache)

    @cached_property
    def problem(self) -> Problem:
        """Samples and figures."""
        return problem(self.network)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks with their losses."""
        return self.model.tasks(self.problem.losses)

    @cached_property
    def unlabeled(self) -> tuple[Task, ...]:
        """The tasks without losses."""
        return tuple(replace(task, loss=None) for task in self.tasks)

    @cached_property
    def images(self) -> Tensor:
        """``[count, 3, H, W]``: all that methods without labels see."""
        return calibration(self.network, self.count, self.seed)

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """The same images with labels."""
        return labeled(self.network, self.count, self.seed)

    @cached_property
    def structure(self) -> Structure:
        """Groups, with every task."""
        return analyse(self.model, self.model.example_inputs(2), self.unlabeled)

    @cached_property
    def joint(self) -> Structure:
        """The same groups, with one task that stands for all."""
        return analyse(self.model, self.model.example_inputs(2), [joint_task(self.tasks)])

    def keep(self, criterion: Criterion, ranking: Ranking, fraction: float) -> Tensor:
        """What a method that does not ask the tasks keeps at ``fraction`` of the MACs: bool ``[units]``."""
        scores = self.once(
            ("scores", criterion),
            lambda: score(self.model, self.joint, self.batches, criterion, seed=self.seed).scores,
        )
        return self.once(
            ("keep", criterion, ranking, fraction),
            lambda: decide(self.joint, scores, Budget(macs=fraction, round_to=1), ranking=ranking).keep,
        )

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result of ``make``, which is called for the first method that asks; see :meth:`saved`."""
        if key in self._known:
            known: T
            known, seconds = self._known[key]
            self._saved.append(seconds)
            return known
        started = time.perf_counter()
        made = make()
        self._known[key] = made, time.perf_counter() - started
        return made

    def saved(self) -> float:
        """Seconds that :meth:`once` has saved since the last call, because another method had spent them."""
        total = sum(self._saved)
        self._saved.clear()
        return total


@torch.no_grad()
def reestimated(model: nn.Module, images: Tensor) -> nn.Module:
    """``model`` itself, with the statistics of its batch norms re-estimated from ``images`` in one pass.

    Everything else, dropout included, computes as in eval mode. Modes are restored.
    """
    norms = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with eval_mode(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all passes, of which there is one
            norm.training = True
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model
