"""Scoring and deciding during training, for the masked regimes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from disparse_structured.data.batches import ToInputs
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import Decision
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import OptionError
from disparse_structured.naming import rule_name
from disparse_structured.pipeline import DiSparse
from disparse_structured.regimes.processes import on_rank_zero
from disparse_structured.regimes.reading import undisturbed
from disparse_structured.scoring import Saliency
from disparse_structured.structure import Structure


def check_votes(method: object) -> None:
    """Raises :class:`OptionError` unless ``method`` is a :class:`DiSparse`, which can vote more than once."""
    if not isinstance(method, DiSparse):
        found = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        raise OptionError(
            f"method must be DiSparse(...) in a regime that decides more than once, got {found}. "
            "Pretrained and Static take any method."
        )


@dataclass(frozen=True, eq=False)
class DecisionSettings:
    """A structure, the data to score its units on, the budget, and the method of voting.

    ``batches`` limits how many batches of ``data`` one scoring reads. Every scoring iterates ``data`` from
    its beginning, under random states that follow from ``seed`` and the scoring's number. A loader that
    shuffles thus yields other samples each time, and the same ones when a run is repeated or resumed.
    Training that reads the same loader is not disturbed.
    """

    structure: Structure
    data: Iterable[Any]
    budget: Budget
    method: DiSparse
    to_inputs: ToInputs | None
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
                return self.method.score(
                    model,
                    self.structure,
                    self.data,
                    to_inputs=self.to_inputs,
                    seed=seed,
                    max_batches=self.batches,
                    keep=keep,
                )

        return on_rank_zero(scored)

    def vote(
        self, scores: torch.Tensor, budget: Budget | None = None, *, stay: torch.Tensor | None = None
    ) -> Decision:
        """What the arbiter decides on ``scores``, ``[tasks, units]``."""
        return self.method.vote(self.structure, scores, budget or self.budget, stay=stay)

    def plan(self, decision: Decision) -> Plan:
        """The plan for ``decision``; it records these settings, whatever budget the last step was within."""
        method = self.method
        decided = replace(
            decision, budget=self.budget, arbiter=rule_name(method.arbiter), ranking=rule_name(method.ranking)
        )
        return decided.plan(
            self.structure, method=type(method).__name__, criterion=method.criterion, seed=self.seed
        )
