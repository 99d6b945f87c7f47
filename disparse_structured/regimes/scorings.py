"""Scoring and deciding during training, for the masked regimes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from disparse_structured.checks import check_not_class, shown
from disparse_structured.data.batches import ToInputs
from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import Decision
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import OptionError
from disparse_structured.graph.named_tensors import detached_tensors
from disparse_structured.naming import rule_name
from disparse_structured.pipeline import Compensated, Data, DiSparse, Problem, Repeatable
from disparse_structured.pipeline.method import vote
from disparse_structured.refit import RefitMethod, refit
from disparse_structured.regimes.processes import on_rank_zero
from disparse_structured.regimes.reading import undisturbed
from disparse_structured.scoring import Saliency
from disparse_structured.scoring.criteria import Taylor
from disparse_structured.structure import Structure

T = TypeVar("T")

EXAMPLES = 256
"""Examples that scores and refits read: to train a network, there are more than the 64 of ``prune``."""

COMPENSATED = Compensated(Taylor(), scored=EXAMPLES)
"""How regimes decide by default where the network is trained already. It reads no labels: with them, and as
many examples, the result was no better. Nor was it by elimination, over 28 pairs of runs of the tables."""


def check_repeatable(method: object) -> None:
    """Raises :class:`OptionError` unless ``method`` can decide again on what an earlier decision left."""
    check_not_class("method", method)
    if not isinstance(method, Repeatable):
        raise OptionError(
            f"method must decide on scores in a regime that decides more than once, got {shown(method)}. "
            "Pass Compensated() or DiSparse(). Pretrained and Static take any method."
        )


def check_votes(method: object) -> None:
    """Raises :class:`OptionError` unless ``method`` is :class:`DiSparse`, which scores removed units too."""
    check_not_class("method", method)
    if not isinstance(method, DiSparse):
        raise OptionError(
            f"method must be DiSparse(...) in a regime that regrows units, got {shown(method)}. "
            "Pretrained and Static take any method."
        )


def problem_of(
    model: nn.Module,
    structure: Structure,
    data: Iterable[Any],
    budget: Budget,
    to_inputs: ToInputs | None,
    batches: int | None,
    seed: int,
) -> Problem:
    """What a method decides on: the first ``batches`` of ``data`` with labels, and examples without."""

    def examples() -> Calibration:
        marked = structure.marked
        return Data.of(model, data, to_inputs, samples=EXAMPLES, seed=seed, marked=marked).calibration

    return Problem(model, structure, data, examples, budget, to_inputs, batches, seed)


def write(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies ``tensors`` into the parameters and buffers of these names."""
    with torch.no_grad():
        for name, tensor in detached_tensors(model).items():
            if name in tensors:
                tensor.copy_(tensors[name])


@dataclass(frozen=True, eq=False)
class DecisionSettings:
    """A structure, the data that its units are scored on, the budget, and how to decide and refit.

    ``batches`` limits how many batches of ``data`` one scoring reads. Every scoring iterates ``data`` from
    its beginning, under random states that follow from ``seed`` and the scoring's number. A loader that
    shuffles thus yields other samples each time, and the same ones when a run is repeated or resumed.
    Training that reads the same loader is not disturbed.
    """

    structure: Structure
    data: Iterable[Any]
    budget: Budget
    method: Repeatable
    refit: RefitMethod | None
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
        return self.budget.share(self.structure)

    def cost(self, keep: torch.Tensor) -> float:
        """The limited cost of ``keep``, bool ``[units]``."""
        return self.budget.of.on(self.structure).total(keep)

    def within(self, share: float) -> Budget:
        """The budget with another limit, a share of the dense cost in (0, 1)."""
        return replace(self.budget, limit=share)

    def score(self, model: nn.Module, number: int = 0, keep: torch.Tensor | None = None) -> Saliency:
        """Scoring number ``number``, of the network with the units of ``keep``; the same in all processes."""
        return self._read(number, lambda: self.method.score(self._problem(model, number), keep))

    def compensated(self, model: nn.Module, number: int, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of ``model`` that its refit to ``keep`` changes; the same in all processes."""
        method = self.refit
        if method is None:
            return {}

        def changed() -> dict[str, torch.Tensor]:
            calibration = self._problem(model, number).calibration
            found = detached_tensors(refit(model, self.structure, keep, calibration, method=method).model)
            return {
                name: found[name]
                for name, tensor in detached_tensors(model).items()
                if not torch.equal(tensor, found[name])
            }

        return self._read(number, changed)

    def vote(
        self,
        scores: torch.Tensor,
        budget: Budget | None = None,
        *,
        stay: torch.Tensor | None = None,
        left: torch.Tensor | None = None,
    ) -> Decision:
        """What the arbiter decides on ``scores``, ``[tasks, units]``."""
        return vote(self.method, self.structure, scores, budget or self.budget, stay=stay, left=left)

    def plan(self, decision: Decision) -> Plan:
        """The plan for ``decision``; it records these settings, whatever budget the last step was within."""
        method = self.method
        decided = replace(
            decision, budget=self.budget, arbiter=rule_name(method.arbiter), ranking=rule_name(method.ranking)
        )
        return decided.plan(
            self.structure, method=type(method).__name__, criterion=method.criterion, seed=self.seed
        )

    def _problem(self, model: nn.Module, number: int) -> Problem:
        return problem_of(
            model,
            self.structure,
            self.data,
            self.budget,
            self.to_inputs,
            self.batches,
            self.seed + number,
        )

    def _read(self, number: int, compute: Callable[[], T]) -> T:
        def reading() -> T:
            with undisturbed(self.data, self.seed + number):
                return compute()

        return on_rank_zero(reading)
