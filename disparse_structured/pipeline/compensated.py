"""From the dense network to a budget in a few rounds, each decided on curves of what the last one left."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from disparse_structured.data.batches import as_they_are, batch_size
from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.arbiters import Arbiter
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import Decision, decide
from disparse_structured.decision.rankings import Ranking
from disparse_structured.naming import rule_name
from disparse_structured.refit import LeastSquares, RefitMethod, refit
from disparse_structured.scoring import Criterion, Saliency, measure
from disparse_structured.scoring.criteria import Taylor
from disparse_structured.scoring.damage_curves import JUDGED, LEFT, measure_damage_curves
from disparse_structured.structure import Structure

_TAYLOR, _LEAST_SQUARES = Taylor(), LeastSquares(shifts=0)


@dataclass(frozen=True)
class Compensated:
    """Units are scored by the error that is left after compensation, again and again along the way.

    In each round the criterion orders the units of what is left, curves say what narrowing each group costs
    each task once its readers are refit, the votes go on to the next budget, and the network is refit. The
    budgets of the rounds are a geometric series.

    Args:
        criterion: orders units within their groups.
        rounds: how many; at least 1.
        left: at which shares of a group's units its curve is measured.
        scored: examples that the criterion reads.
        judged: examples that outputs are compared on; fewer of large networks, see :func:`foresee`.
        refit: between the rounds.
    """

    criterion: Criterion = _TAYLOR
    rounds: int = 2
    left: tuple[float, ...] = LEFT
    scored: int = 32
    judged: int = JUDGED
    refit: RefitMethod = _LEAST_SQUARES

    def __post_init__(self) -> None:
        if min(self.rounds, self.scored, self.judged) < 1 or not all(0 < share < 1 for share in self.left):
            raise ValueError(
                f"rounds={self.rounds}, scored={self.scored}, judged={self.judged}, left={self.left}: counts "
                "are at least 1, shares between 0 and 1."
            )

    def decide(
        self,
        model: nn.Module,
        structure: Structure,
        calibration: Calibration,
        budget: Budget,
        *,
        arbiter: Arbiter,
        ranking: Ranking,
        weights: list[float],
        seed: int = 0,
        progress: bool = False,
    ) -> tuple[Decision, Saliency]:
        """Where the last round ended, and the saliency it was decided on; ``model`` stays as it is.

        Raises:
            BudgetError: the budget cannot be met.
        """
        dense = budget.of.on(structure).dense
        fraction = budget.target(dense) / dense
        keep = torch.ones(structure.units, dtype=torch.bool)
        current, last = model, self.rounds - 1
        size = batch_size(calibration.chunks[0])
        scored = calibration.chunks[: max(1, self.scored // size)]
        for number in range(self.rounds):
            saliency = measure(
                current, structure, self.criterion, scored,
                inputs=as_they_are, seed=seed, keep=keep, progress=progress,
            )  # fmt: skip
            curves = measure_damage_curves(
                current, structure, saliency.scores, calibration,
                keep=keep, left=self.left, judged=self.judged, seed=seed,
            )  # fmt: skip
            step = fraction ** ((number + 1) / self.rounds)
            aim = budget if number == last else dataclasses.replace(budget, limit=step)
            found = decide(
                structure, curves.scores, aim,
                ranking=ranking, arbiter=arbiter, weights=weights, left=keep if number else None,
            )  # fmt: skip
            keep = found.keep
            if number < last:
                current = refit(model, structure, keep, calibration, method=self.refit).model
        return found, dataclasses.replace(saliency, scores=curves.scores, criterion=rule_name(self))
