"""Decides by the damage that is left after compensation, in a few rounds on the way to the budget."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Literal

import torch

from disparse_structured.checks import check_counts, check_object, is_number, shown
from disparse_structured.data.batches import as_they_are, batch_size
from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.arbiters import Arbiter, WeightedMean
from disparse_structured.decision.rankings import PerCostRanking, Ranking
from disparse_structured.errors import OptionError
from disparse_structured.naming import brief
from disparse_structured.pipeline.method import (
    Decided,
    Problem,
    decide_in_rounds,
    refit_passes,
    rounds_to,
    scoring_passes,
)
from disparse_structured.pipeline.options import check_refit, check_rules
from disparse_structured.refit import LeastSquares, RefitMethod
from disparse_structured.scoring import Criterion, Saliency, score
from disparse_structured.scoring.criteria import Taylor
from disparse_structured.scoring.damage_curves import JUDGED, LEAST_JUDGED, LEFT, WORK, measure_damage_curves
from disparse_structured.structure import Structure

_TAYLOR, _MEAN, _PER_COST, _LEAST_SQUARES = Taylor(), WeightedMean(), PerCostRanking(), LeastSquares(shifts=0)


@dataclass(frozen=True)
class Compensated:
    """Compensated damage: what each task still loses after the layers that read a unit have adapted.

    Needs no labels, and reads none. In each round the units of what is left are ordered, curves say
    what narrowing each group costs each task once its readers are refit, the arbiter decides on the next
    budget, and the network is refit. The budgets of the rounds are a geometric series.

    Args:
        criterion: orders units within their groups. By default they are removed in the order in which they
            cost least once the layers that read them have adapted, see
            :mod:`disparse_structured.scoring.elimination`, and :class:`~disparse_structured.criteria.Taylor`
            orders what no such layer reads. Where the weights are not refit by least squares afterward,
            ``Taylor()`` loses less.
        arbiter: how the tasks' damage becomes a decision. The mean of the damage loses less than unanimity
            does where damage is measured; see the table in ``docs/choosing.md``.
        ranking: how layers compete within one task's vote.
        rounds: how many; at least 1. By default two, and more for small budgets: no round removes more than
            half of what is left.
        left: at which shares of a group's units its curve is measured.
        scored: examples that the criterion reads.
        judged: examples that outputs are compared on; fewer for large networks, see
            :func:`~disparse_structured.scoring.damage_curves.measure_damage_curves`.
        refit: how the network is refit between rounds.

    Raises:
        OptionError: a count below 1, a share outside (0, 1), or a choice of the wrong kind.
    """

    criterion: Criterion | Literal["elimination"] = "elimination"
    arbiter: Arbiter = _MEAN
    ranking: Ranking = _PER_COST
    rounds: int | None = None
    left: tuple[float, ...] = LEFT
    scored: int = 32
    judged: int = JUDGED
    refit: RefitMethod = _LEAST_SQUARES

    def __post_init__(self) -> None:
        check_rules(arbiter=self.arbiter, ranking=self.ranking)
        if not self._eliminates:
            check_rules(criterion=self.criterion)
        check_refit(self.refit)
        check_counts(scored=self.scored, judged=self.judged)
        if self.rounds is not None:
            check_counts(rounds=self.rounds)
        check_object("left", self.left, tuple, "a tuple of shares", "Pass one such as (0.75, 0.5, 0.25).")
        if not self.left or not all(is_number(share) and 0 < share < 1 for share in self.left):
            raise OptionError(f"left={shown(self.left)} must hold shares between 0 and 1, at least one.")

    def __repr__(self) -> str:
        return brief(self)

    @property
    def _eliminates(self) -> bool:
        return self.criterion == "elimination"

    def passes(
        self, structure: Structure, calibration: Calibration, scored: int | None, share: float
    ) -> float:
        """See :class:`~disparse_structured.pipeline.method.Counting`."""
        narrowed = len(structure.groups) * len(self.left)
        affordable = int(WORK / max(1.0, structure.cost.macs.dense * max(1, narrowed)))
        judged = min(self.judged, max(LEAST_JUDGED, affordable), calibration.samples)
        # Elimination seldom leaves a group to the criterion, and reads the layers' inputs in half a pass.
        scoring = (
            calibration.samples / 2
            if self._eliminates
            else scoring_passes(structure, min(self.scored, calibration.samples))
        )
        # If one group is narrowed, only what comes after it is computed: half of the network on average.
        curves = judged * (1 + narrowed / 2)
        rounds = self.rounds or rounds_to(share)
        return rounds * (scoring + curves) + (rounds - 1) * refit_passes(self.refit, calibration)

    def decide(self, problem: Problem) -> Decided:
        """See :class:`~disparse_structured.pipeline.method.Method`."""
        return decide_in_rounds(self, problem, self.rounds, self.refit)

    def score(self, problem: Problem, keep: torch.Tensor | None = None) -> Saliency:
        """See :class:`~disparse_structured.pipeline.Repeatable`."""
        calibration, structure = problem.calibration, problem.structure
        unlabeled = tuple(dataclasses.replace(task, loss=None) for task in structure.task_objects)
        structure = dataclasses.replace(structure, task_objects=unlabeled)
        chunks = calibration.chunks[: max(1, self.scored // batch_size(calibration.chunks[0]))]
        criterion = _TAYLOR if isinstance(self.criterion, str) else self.criterion

        @functools.cache
        def scored() -> Saliency:
            return score(
                problem.model, structure, chunks, criterion,
                to_inputs=as_they_are, seed=problem.seed, keep=keep, progress=problem.progress,
            )  # fmt: skip

        curves = measure_damage_curves(
            problem.model, structure, lambda: scored().scores, calibration,
            keep=keep, left=self.left, judged=self.judged, eliminate=self._eliminates, seed=problem.seed,
        )  # fmt: skip
        if not curves.eliminated or curves.unmoved:
            # Gradients also tell whether an output that does not move depends on any units.
            return dataclasses.replace(scored(), scores=curves.scores)
        read = len(calibration.chunks)
        samples = read * batch_size(calibration.chunks[0])
        return Saliency(curves.scores, structure.tasks, "elimination", read, samples)
