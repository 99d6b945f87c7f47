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
from benchmarks.joint import joint_task
from benchmarks.no_training.networks import CACHE, Network, calibration, labelled, problem, trained
from benchmarks.tables.problems import Problem
from disparse_structured.adapters.timm import MultiTask
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import decide
from disparse_structured.decision.rankings import Ranking
from disparse_structured.scoring import Criterion, score
from disparse_structured.structure import Structure, analyse
from disparse_structured.tasks import Task

T = TypeVar("T")

INPUTS = 64
"""Calibration images, if nothing else is said."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A trained network of one seed and what it is pruned with; no method changes any of it.

    Args:
        network: which one.
        seed: of its training, and of the choice of images.
        count: images to calibrate on.
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
    def unlabelled(self) -> tuple[Task, ...]:
        """The tasks without losses."""
        return tuple(replace(task, loss=None) for task in self.tasks)

    @cached_property
    def images(self) -> Tensor:
        """``[count, 3, H, W]``: all that methods without labels see."""
        return calibration(self.network, self.count, self.seed)

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """The same images with labels."""
        return labelled(self.network, self.count, self.seed)

    @cached_property
    def structure(self) -> Structure:
        """Groups, with every task."""
        return analyse(self.model, self.model.example_inputs(2), self.unlabelled)

    @cached_property
    def joint(self) -> Structure:
        """The same groups, with one task that stands for all."""
        return analyse(self.model, self.model.example_inputs(2), [joint_task(self.tasks)])

    def keep(self, criterion: Criterion, ranking: Ranking, fraction: float) -> Tensor:
        """Bool ``[units]`` of a method that does not ask the tasks, at ``fraction`` of the MACs."""
        scores = self.once(
            ("scores", criterion),
            lambda: score(self.model, self.joint, self.batches, criterion, seed=self.seed).scores,
        )
        return self.once(
            ("keep", criterion, ranking, fraction),
            lambda: decide(self.joint, scores, Budget(macs=fraction), ranking=ranking).keep,
        )

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, computed for the first method that asks; :meth:`saved` is told of the rest."""
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
        """Seconds that were not spent since the last call because another method had spent them."""
        total = sum(self._saved)
        self._saved.clear()
        return total


@torch.no_grad()
def reestimated(model: nn.Module, images: Tensor) -> nn.Module:
    """``model`` itself, with the statistics of its batch norms taken anew from ``images``, all at once.

    Everything else, dropout included, computes as in eval mode. Modes are restored.
    """
    norms = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all calls, of which there is one
        norm.training = True
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes:
        module.training = mode
    return model
