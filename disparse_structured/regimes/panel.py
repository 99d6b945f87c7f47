"""Who decides, and by what: the part that all regimes share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from disparse_structured.data.batches import Inputs
from disparse_structured.decision.arbiters import Arbiter
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import Decision, decide
from disparse_structured.decision.plan import Plan
from disparse_structured.decision.rankings import Ranking
from disparse_structured.regimes.processes import on_rank_zero
from disparse_structured.regimes.reading import undisturbed
from disparse_structured.scoring import Criterion, Saliency, measure
from disparse_structured.structure import Structure


@dataclass(frozen=True, eq=False)
class DecisionSettings:
    """A structure, the data to score its units on, and the rules of the vote.

    ``batches`` limits how much of ``data`` one scoring reads. Every scoring iterates ``data`` anew, under
    random states of its own that follow from ``seed`` and the scoring's number, so that a loader that
    shuffles shows other samples each time, and the same ones when a run is repeated or resumed. Whoever
    trains on the same loader notices nothing of it.
    """

    structure: Structure
    data: Iterable[Any]
    budget: Budget
    criterion: Criterion
    arbiter: Arbiter
    ranking: Ranking
    inputs: Inputs | None
    seed: int
    batches: int | None

    @property
    def dense(self) -> float:
        """The limited cost of the dense network."""
        return self.budget.of.on(self.structure).dense

    @property
    def share(self) -> float:
        """The budget as a share of the dense cost."""
        return self.budget.target(self.dense) / self.dense

    def cost(self, keep: torch.Tensor) -> float:
        """The limited cost of ``keep``, bool ``[units]``."""
        return self.budget.of.on(self.structure).total(keep)

    def within(self, share: float) -> Budget:
        """The budget with another limit, a share of the dense cost in (0, 1)."""
        return replace(self.budget, limit=share)

    def score(self, model: nn.Module, number: int = 0, keep: torch.Tensor | None = None) -> Saliency:
        """Scoring number ``number``, of the network with the units of ``keep``; the same in all processes."""
        seed = self.seed + number

        def scored() -> Saliency:
            with undisturbed(self.data, seed):
                return measure(
                    model,
                    self.structure,
                    self.criterion,
                    self.data,
                    inputs=self.inputs,
                    seed=seed,
                    max_batches=self.batches,
                    keep=keep,
                )

        return on_rank_zero(scored)

    def decide(
        self,
        scores: torch.Tensor,
        budget: Budget | None = None,
        *,
        arbiter: Arbiter | None = None,
        stay: torch.Tensor | None = None,
    ) -> Decision:
        """What the arbiter decides on ``scores``, ``[tasks, units]``; see
        :func:`~disparse_structured.decision.deciding.decide`.
        """
        return decide(
            self.structure,
            scores,
            budget or self.budget,
            ranking=self.ranking,
            arbiter=arbiter or self.arbiter,
            weights=[task.weight for task in self.structure.task_objects],
            stay=stay,
        )

    def plan(self, decision: Decision) -> Plan:
        """``decision``, written down."""
        return decision.plan(self.structure, criterion=self.criterion, seed=self.seed)
