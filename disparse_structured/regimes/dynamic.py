"""Pruned while training: units go, and units come back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from disparse_structured.data.batches import Inputs
from disparse_structured.decision.arbiters import Arbiter, Unanimous
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import DEFAULT_ARBITER, DEFAULT_RANKING, smallest
from disparse_structured.decision.rankings import Ranking
from disparse_structured.naming import rule_name
from disparse_structured.regimes.masked import MaskedRegime
from disparse_structured.regimes.panel import DecisionSettings
from disparse_structured.scoring import Criterion
from disparse_structured.scoring.criteria import Fisher
from disparse_structured.structure import analyse
from disparse_structured.tasks import Task


class Dynamic(MaskedRegime):
    """Prune and regrow: the network is within its budget from the first step to the last.

    Every ``every`` steps, until ``until`` of all steps, a share of the budget changes hands, which falls
    from ``fraction`` to zero along a cosine (RigL: Evci et al., ICML 2020). What is on is dropped
    by the arbiter on the tasks' votes to remove; what is off, or was just dropped, comes back by its gate's
    gradients, if any task asks (DiSparse, Sun et al., CVPR 2022). Both read one scoring of the masked
    network. A unit returns with the weights it left with.

    Args:
        model: a freshly initialised (or trained) dense network. It is trained and masked in place.
        steps: how many optimiser steps training will take.
        every: steps between two exchanges.
        fraction: share of the budget's cost that the first exchange moves, in (0, 1).
        grow: scores for coming back, where they are not ``criterion``'s; read in a second scoring.
        until: share of ``steps`` after which the mask is fixed, in (0, 1].
        batches: how many batches of ``data`` one exchange reads; 1 as in RigL.
        first_batches: how many the first decision reads, which has none before it to improve on.
        example_inputs, tasks, data, budget, criterion, arbiter, ranking, inputs, seed: as in
            :class:`disparse_structured.regimes.Pretrained`. Example inputs of the batches' own shape save
            an export at every exchange.

    Raises:
        BudgetError: the budget cannot be met; ``model`` is unchanged.
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...] | torch.Tensor,
        tasks: Sequence[Task],
        data: Iterable[Any],
        *,
        budget: Budget,
        steps: int,
        every: int = 100,
        fraction: float = 0.3,
        until: float = 0.75,
        criterion: Criterion | None = None,
        grow: Criterion | None = None,
        arbiter: Arbiter = DEFAULT_ARBITER,
        ranking: Ranking = DEFAULT_RANKING,
        inputs: Inputs | None = None,
        seed: int = 0,
        batches: int | None = 1,
        first_batches: int | None = 16,
    ) -> None:
        if steps < 1 or every < 1 or not 0 < fraction < 1 or not 0 < until <= 1:
            raise ValueError(
                f"steps={steps}, every={every}, fraction={fraction}, until={until}: steps and every must be "
                "at least 1, fraction between 0 and 1, until above 0 and at most 1."
            )
        structure = analyse(model, example_inputs, tasks)
        criterion = criterion or Fisher()
        super().__init__(
            model,
            DecisionSettings(structure, data, budget, criterion, arbiter, ranking, inputs, seed, batches),
        )
        self.every, self.fraction, self.last = every, fraction, until * steps
        self.grow = grow
        saliency = self.score(batches=first_batches)
        with self.explaining():
            decision = self.panel.decide(saliency.scores)
        self.adopt(decision, saliency)

    @property
    def schedule(self) -> str:
        """See :class:`MaskedRegime`."""
        grown = "" if self.grow is None else f", grown by {rule_name(self.grow)}"
        return f"every {self.every} steps until {self.last:g}, fraction {self.fraction}{grown}"

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keeps the mask, and exchanges units when it is time."""
        self.masks.enforce()
        self.steps_taken += 1
        if self.steps_taken % self.every == 0 and self.steps_taken < self.last:
            self._exchange(optimizer)

    @property
    def moving(self) -> float:
        """The share of the budget that an exchange would move now."""
        return self.fraction / 2 * (1 + math.cos(math.pi * min(self.steps_taken / self.last, 1.0)))

    def _exchange(self, optimizer: torch.optim.Optimizer) -> None:
        panel = self.panel
        least = panel.cost(smallest(panel.structure, panel.budget)) / panel.dense
        # A share may be rounded down: one step up, it allows the cost that it was made from.
        lower = max(panel.share * (1 - self.moving), math.nextafter(least, 1.0))
        if lower >= panel.share:
            return
        saliency = self.score()
        dropped = panel.decide(saliency.scores.masked_fill(~self.keep, 0.0), panel.within(lower))
        survivors = self.keep & dropped.keep
        if self.grow is not None:
            saliency = self.score(criterion=self.grow)
        # Unanimity read backwards: a unit stays off only if every task leaves it off.
        self.adopt(panel.decide(saliency.scores, arbiter=Unanimous(), stay=survivors), saliency, optimizer)
