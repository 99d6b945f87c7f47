"""The message about a budget that cannot be met: how far it could go, and what limits it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from disparse_structured.decision.budget.limits import Budget
from disparse_structured.decision.budget.protection import protected_units
from disparse_structured.decision.budget.slack import cheapest
from disparse_structured.decision.budget.widths import Widths
from disparse_structured.decision.contracts import CostModel, PrunableStructure

_MENTIONED = 0.05
"""The smallest share of the parameters for which a pin is mentioned."""

_ADVICE = (
    ("no rule for", "To add a rule for an operator, see docs/extending.md."),
    (
        "the network's output",
        'If outputs other than the tasks\' pin it, use analyse(..., outputs="tasks") (--outputs tasks).',
    ),
)


@dataclass(frozen=True, eq=False)
class Unreachable:
    """A budget that no decision meets.

    Args:
        last: bool ``[units]``, the decision at ratio 1, before its widths were made legal.
        reached: the smallest cost that was found.
        narrower_can_cost_more: whether that was not the cost of the narrowest widths.
        importance: int64 ``[units]``, all units, most important first.
    """

    structure: PrunableStructure
    budget: Budget
    cost: CostModel
    last: torch.Tensor
    reached: float
    narrower_can_cost_more: bool
    importance: torch.Tensor

    def message(self) -> str:
        """The budget, the smallest reachable cost, what limits it, and what to do."""
        dense, unit = self.cost.dense, self.budget.of.unit
        reached, target = self.reached, self.budget.target(dense)
        limiting = self._limiting()
        unrestricted = replace(
            self.budget, floor=0.0, min_width=1, round_to=1, protected=(), shares=(), uniform=False
        )
        remains = self._least(unrestricted, torch.zeros_like(self.last)) / dense
        return (
            f"the budget {self.budget} ({target:.4g} {unit}, {target / dense:.1%} of dense) cannot be met. "
            f"The smallest reachable cost is {reached:.4g} {unit}, {reached / dense:.1%} of dense. "
            f"{'Limiting factors: ' + ', '.join(limiting) + '. ' if limiting else ''}"
            f"Whatever the options, {remains:.1%} remains: pinned layers, count constraints, one unit per "
            f"group. {self._remedy()}{self._hints()}"
        )

    def _least(self, budget: Budget, decided: torch.Tensor) -> float:
        """The smallest cost that ``budget``'s width rules leave of ``decided``, bool ``[units]``."""
        free = ~protected_units(self.structure.groups, budget.protected)
        arguments = (self.structure.groups, self.structure.constraints, budget, self.structure.reach)
        widths = Widths.of(*arguments, self.importance)
        keep = widths.settle(decided | ~free)
        if self.narrower_can_cost_more:
            keep = cheapest(keep, free, widths, self.cost.total)
        return float(self.cost.total(keep))

    def _limiting(self) -> list[str]:
        """Each option that keeps the cost up, measured by loosening it alone."""
        budget, last = self.budget, self.last
        free = ~protected_units(self.structure.groups, budget.protected)
        trials = [
            (f"floor={budget.floor:g}", replace(budget, floor=0.0), last),
            (f"min_width={budget.min_width}", replace(budget, min_width=1), last),
            (f"round_to={budget.round_to}", replace(budget, round_to=1), last),
            (f"protected={list(budget.protected)}", replace(budget, protected=()), last & free),
            (f"shares={[name for name, *_ in budget.shares]}", replace(budget, shares=()), last),
            ("uniform=True", replace(budget, uniform=False), last),
            ("the arbiter", budget, torch.zeros_like(last)),
        ]
        return [
            f"{name} ({without / self.cost.dense:.1%} without it)"
            for name, loose, decided in trials
            if (without := self._least(loose, decided)) < self.reached
        ]

    def _remedy(self) -> str:
        possible = math.ceil(self.reached / self.cost.dense * 1000) / 1000
        if possible < 1:
            return f"Ask for at least {possible:g}, or loosen what limits it."
        return "Nothing can be removed: loosen what limits it."

    def _pins(self) -> str:
        """What pins most of the parameters, and what would free it."""
        largest = [pin for pin in self.structure.pinned if pin.share >= _MENTIONED][:3]
        if not largest:
            return ""
        said = "; ".join(
            f"{pin.reason}{f' in {pin.module!r}' if pin.module else ''} ({pin.share:.1%} of the parameters)"
            for pin in largest
        )
        advice = [text for found, text in _ADVICE if any(found in pin.reason for pin in largest)]
        return " ".join([f" Pinned: {said}.", *advice])

    def _hints(self) -> str:
        hints = self._pins()
        if self.budget.limit > 1:
            hints += " A number above 1 is absolute; for a fraction of dense, use a number such as 0.5."
        if self.structure.graph_only:
            hints += (
                f" Numbers in forward pin slices with {self.structure.graph_only:.1%} of the parameters; "
                'analyse(..., form="graph") (--form graph) can remove them.'
            )
        return hints
