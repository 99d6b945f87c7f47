"""What is compared: the rules for widths under a MACs budget, stock Torch-Pruning, and random plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from benchmarks import stock
from benchmarks.latency.cells import WITHIN
from benchmarks.timm_sweep.stock import follow_heads, predictors, projections
from disparse_structured.adapters.timm import MultiTask
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import decide
from disparse_structured.pipeline import Compensated, DiSparse
from disparse_structured.pipeline.method import Decided, Method, Problem
from disparse_structured.structure import Structure

OURS = "latency"
STOCK = "stock, 8"

ROUNDING: Mapping[str, Any] = {"MACs": 1, "MACs, auto": "auto", "MACs, 8": 8, "MACs, 16": 16}
"""``round_to`` of the MACs budgets, by variant."""

VARIANTS = (OURS, *ROUNDING, STOCK)

METHODS: Mapping[str, Callable[[], Method]] = {
    "disparse": DiSparse,
    "compensated": lambda: Compensated(rounds=1),
}
"""Methods whose scores do not depend on the budget."""

FLOOR = 0.05
"""The share of every group that random plans keep."""

_ROUND_TO = 8
_ATOMS = "heads.*.branches.*.1"
"""The last layers of DeepLab's heads."""


@dataclass(frozen=True)
class Remembering:
    """``method``, which scores once, whatever the budget."""

    method: Method
    known: dict[str, Any] = field(default_factory=dict)

    def decide(self, problem: Problem) -> Decided:
        """See :class:`~disparse_structured.pipeline.method.Method`."""
        return self.method.decide(replace(problem, known=self.known))


def random_plans(structure: Structure, count: int) -> Iterator[Tensor]:
    """Bool ``[units]`` each: from 10 to 90 % of the MACs, every other one with rounded widths."""
    random = torch.Generator().manual_seed(0)
    for number in range(count):
        scores = torch.rand(structure.units, generator=random)
        for group in structure.groups:
            scores[group.slice] *= 10 ** (torch.rand(1, generator=random) - 0.5)
        share = 0.1 + 0.8 * (number + 0.5) / count
        budget = Budget(macs=share, floor=FLOOR, round_to=("auto", 1)[number % 2])
        yield decide(structure, scores.expand(len(structure.tasks), -1), budget).keep


def stock_pruned(model: MultiTask, inputs: tuple[Tensor, ...], share: float) -> nn.Module:
    """A copy of ``model`` with about ``share`` of the MACs, by Torch-Pruning with ``round_to=8``.

    Every layer keeps the same share of its channels, those of the largest group norm.
    """
    trial = deepcopy(model)
    attentions = projections(trial)
    kept = [layer for name, layer in trial.named_modules() if fnmatchcase(name, _ATOMS)]
    pruner = stock.pruner(
        trial,
        inputs,
        tp.importance.GroupMagnitudeImportance(p=2),
        1 - share**0.5,
        [*predictors(trial), *kept],
        num_heads={each.qkv: each.num_heads for each in attentions},
        round_to=_ROUND_TO,
    )
    pruner.step()
    follow_heads(attentions, pruner)
    return trial


@dataclass(frozen=True)
class Found:
    """A share that was tried, and what was measured there."""

    share: float
    value: float


def matching(
    wanted: float,
    predicted: Callable[[float], float],
    measured: Callable[[float], float],
    tries: int = 4,
) -> Found:
    """The share of the MACs for which ``measured`` is ``wanted``, within :data:`WITHIN` of it if possible.

    It is bisected on ``predicted`` and measured. The next aim follows a power law through the last two tries,
    at first a proportional one.

    >>> round(matching(0.5, lambda share: share, lambda share: 1.25 * share).share, 2)
    0.4
    """
    found: list[Found] = []
    aim, power, before = wanted, 1.0, (0.0, 0.0)
    for _ in range(tries):
        share = _bisected(predicted, aim)
        if any(share == each.share for each in found):
            break
        found.append(Found(share, measured(share)))
        if abs(found[-1].value / wanted - 1) <= WITHIN:
            break
        at = math.log(predicted(share)), math.log(found[-1].value)
        if len(found) > 1 and at[0] != before[0]:
            power = min(3.0, max(1 / 3, (at[1] - before[1]) / (at[0] - before[0])))
        aim = math.exp(at[0] + (math.log(wanted) - at[1]) / power)
        before = at
    return min(found, key=lambda each: abs(each.value / wanted - 1))


def _bisected(predicted: Callable[[float], float], aim: float) -> float:
    low, high = 0.02, 0.98
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (middle, high) if predicted(middle) <= aim else (low, middle)
    return low
