"""Pruning in stages, with training in between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from disparse_structured.data.batches import ToInputs
from disparse_structured.decision.budget import Budget, named
from disparse_structured.errors import OptionError
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.pipeline import DiSparse, PruningResult
from disparse_structured.regimes.masked import MaskedRegime
from disparse_structured.regimes.scorings import DecisionSettings, check_votes
from disparse_structured.structure import analyse
from disparse_structured.tasks import Task

_VOTES = DiSparse()


class Iterative(MaskedRegime):
    """Prunes a trained network in stages; every stage scores the remaining units again.

    The first stage runs at once, the others after every ``every`` training steps. Stage i of n leaves the
    share ``share ** (i / n)`` of the dense cost, so that each removes the same proportion of what remains
    (iterative magnitude pruning's schedule: Frankle and Carbin, ICLR 2019). A removed unit scores zero for
    every task.

    Args:
        model: the trained dense network. It is trained and masked in place: pass a copy to keep it.
        stages: number of stages, at least 1.
        every: training steps between two stages.
        example_inputs, tasks, data, budget, method, to_inputs, seed, batches, entry_points, batched: as in
            :class:`disparse_structured.regimes.Pretrained`.

    Raises:
        BudgetError: the budget cannot be met; ``model`` is unchanged.
        OptionError: ``stages`` or ``every`` is below 1, or ``method`` is not DiSparse.
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
        every: int,
        method: DiSparse = _VOTES,
        to_inputs: ToInputs | None = None,
        seed: int = 0,
        batches: int | None = None,
        entry_points: EntryPoints | None = None,
        batched: Sequence[str] | None = None,
    ) -> None:
        if stages < 1 or every < 1:
            raise OptionError(f"stages={stages} and every={every}: both must be at least 1.")
        check_votes(method)
        structure = analyse(model, example_inputs, tasks, entry_points=entry_points, batched=batched)
        super().__init__(
            model,
            DecisionSettings(structure, data, named(budget, model), method, to_inputs, seed, batches),
        )
        self.stages, self.every = stages, every
        # The last budget must be within reach before the first stage changes anything.
        with self.explaining():
            self.settings.vote(self.structure.reach.to(torch.float64))
        self._advance(None)

    @property
    def stage(self) -> int:
        """How many stages are done."""
        return self._scorings

    @property
    def schedule(self) -> str:
        """See :class:`MaskedRegime`."""
        return f"{self.stages} stages, every {self.every} steps"

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Enforces the mask, and runs the next stage every ``every`` steps."""
        self.masks.enforce()
        self.steps_taken += 1
        if self.steps_taken % self.every == 0 and self.stage < self.stages:
            self._advance(optimizer)

    def finish(self) -> PruningResult:
        """See :class:`Regime`; stages that training did not reach are run now."""
        while self.stage < self.stages:
            self._advance(None)
        return super().finish()

    def _advance(self, optimizer: torch.optim.Optimizer | None) -> None:
        saliency = self.score()
        budget = self.settings.budget
        if self.stage < self.stages:
            budget = self.settings.within(self.settings.share ** (self.stage / self.stages))
        scores = saliency.scores.masked_fill(~self.keep, 0.0)
        self.adopt(self.settings.vote(scores, budget), saliency, optimizer)
