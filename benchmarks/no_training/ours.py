"""Our own rows: one call of the library, with parts of it switched off or exchanged."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from benchmarks.no_training.bench import Bench, reestimated
from disparse_structured.decision.budget import Budget
from disparse_structured.pipeline import PruningResult, prune
from disparse_structured.tasks import Task

_SET_BY_THE_BENCHMARK = frozenset(
    ("model", "data", "tasks", "macs", "parameters", "budget", "tolerance", "structure", "samples", "seed")
)
_WITHOUT_EFFECT = frozenset(("verify", "progress", "to_inputs"))
"""Options that do not change the result."""


def pruned(
    model: nn.Module, images: Tensor, tasks: Sequence[Task], macs: float, **options: Any
) -> PruningResult:
    """The call of the library that this family is about."""
    return prune(model, images, tasks, budget=Budget(macs=macs, round_to=1), **options)


def defaults() -> dict[str, Any]:
    """The present defaults of the options that change the result."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(prune).parameters.items()
        if name not in _SET_BY_THE_BENCHMARK | _WITHOUT_EFFECT
    }


@dataclass(frozen=True)
class Ours:
    """:func:`pruned` on the images, without labels.

    Args:
        options: its keyword arguments, by name; see :meth:`but`.
        batchnorm: re-estimate the statistics of batch norms from the images afterwards.
    """

    options: tuple[tuple[str, Any], ...]
    batchnorm: bool = False

    @classmethod
    def but(cls, batchnorm: bool = False, **options: Any) -> Ours:
        """The present defaults with ``options`` changed. Rows thereby record what the defaults were."""
        return cls(tuple(sorted({**defaults(), **options}.items())), batchnorm)

    def __call__(self, bench: Bench, fraction: float) -> nn.Module:
        """The pruned network."""
        model = deepcopy(self.pruned(bench, fraction).model)
        return reestimated(model, bench.images) if self.batchnorm else model

    def pruned(self, bench: Bench, fraction: float) -> PruningResult:
        """The whole result, with plan and report. It must not be changed: other methods get the same one."""
        options: dict[str, Any] = {"samples": bench.count, "seed": bench.seed, **dict(self.options)}
        return bench.once(
            ("ours", repr(self.options), fraction),
            lambda: pruned(bench.model, bench.images, bench.unlabeled, fraction, **options),
        )
