"""Pruning in stages, with training in between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from disparse_structured.checks import check_counts, check_shares
from disparse_structured.data.batches import ToInputs
from disparse_structured.decision.budget import Budget, named
from disparse_structured.errors import OptionError
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.pipeline import PruningResult, Repeatable
from disparse_structured.pipeline.options import check_refit
from disparse_structured.refit import LeastSquares, RefitMethod
from disparse_structured.regimes.masked import MaskedRegime
from disparse_structured.regimes.scorings import COMPENSATED, DecisionSettings, check_repeatable
from disparse_structured.structure import analyse
from disparse_structured.tasks import Task

_LEAST_SQUARES: RefitMethod = LeastSquares()


class Iterative(MaskedRegime):
    """Prunes in stages, with training in between; every stage scores the remaining units again.

    The first stage runs after the share ``start`` of all steps and the last after the share ``until``, so
    that most of the training follows the last one. By default, the first runs at once: the network is
    trained. For one that is not, let ``start`` leave it time to learn what its units are for. Stage i of n
    leaves the share ``share ** (i / n)`` of the dense cost: each removes the same proportion of what remains
    (iterative magnitude pruning's schedule: Frankle and Carbin, ICLR 2019). The remaining weights are refit
    to what the network computed before each stage.

    Args:
        model: the dense network. It is trained and masked in place: pass a copy to keep it.
        stages: number of stages, at least 1.
        steps: how many optimizer steps training will take.
        start, until: shares of ``steps`` after which the first and the last stage run, 0 <= ``start`` <=
            ``until`` < 1. The first stage takes place at ``start`` if there is only one.
        method: decides which units are removed: :class:`disparse_structured.Compensated`,
            :class:`disparse_structured.DiSparse`, or another
            :class:`~disparse_structured.pipeline.Repeatable`.
        example_inputs, tasks, data, budget, refit, to_inputs, seed, batches, entry_points, batched: as in
            :class:`disparse_structured.regimes.Pretrained`.

    Raises:
        BudgetError: the budget cannot be met; ``model`` is unchanged.
        OptionError: a number is out of its range, or ``method`` cannot decide more than once.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...] | torch.Tensor,
        tasks: Sequence[Task | str],
        data: Iterable[Any],
        *,
        budget: Budget,
        stages: int,
        steps: int,
        start: float = 0.0,
        until: float = 0.4,
        method: Repeatable = COMPENSATED,
        refit: RefitMethod | None = _LEAST_SQUARES,
        to_inputs: ToInputs | None = None,
        seed: int = 0,
        batches: int | None = None,
        entry_points: EntryPoints | None = None,
        batched: Sequence[str] | None = None,
    ) -> None:
        check_counts(stages=stages, steps=steps)
        check_shares(start=start, until=until)
        if not start <= until < 1:
            raise OptionError(
                f"start={start}, until={until}: start must be at most until, and until below 1."
            )
        check_repeatable(method)
        check_refit(refit)
        structure = analyse(model, example_inputs, tasks, entry_points=entry_points, batched=batched)
        super().__init__(
            model,
            DecisionSettings(structure, data, named(budget, model), method, refit, to_inputs, seed, batches),
        )
        self.stages = stages
        self.due = tuple(
            round(steps * (start + (until - start) * i / max(1, stages - 1))) for i in range(stages)
        )
        # The last budget must be within reach before the first stage changes anything.
        with self.explaining():
            self.settings.vote(self.structure.reach.to(torch.float64))
        self._advance_if_due(None)

    @property
    def stage(self) -> int:
        """How many stages are done."""
        return self._scorings

    @property
    def schedule(self) -> str:
        """See :class:`MaskedRegime`."""
        return f"{self.stages} stages, after {', '.join(map(str, self.due))} steps"

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Enforces the mask, and runs the next stage when it is due."""
        self.masks.enforce()
        self.steps_taken += 1
        self._advance_if_due(optimizer)

    def finish(self) -> PruningResult:
        """See :class:`Regime`; stages that training did not reach are run now."""
        while self.stage < self.stages:
            self._advance(None)
        return super().finish()

    def _advance_if_due(self, optimizer: torch.optim.Optimizer | None) -> None:
        while self.stage < self.stages and self.due[self.stage] <= self.steps_taken:
            self._advance(optimizer)

    def _advance(self, optimizer: torch.optim.Optimizer | None) -> None:
        saliency = self.score()
        budget = self.settings.budget
        if self.stage < self.stages:
            budget = self.settings.within(self.settings.share ** (self.stage / self.stages))
        self.adopt(self.settings.vote(saliency.scores, budget, left=self.keep), saliency, optimizer)
