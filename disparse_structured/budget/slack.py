"""Using up what a kept set leaves of the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from disparse_structured.budget.widths import Widths


@dataclass(frozen=True, eq=False)
class Fits:
    """The cost of a kept set against the target."""

    cost: Callable[[torch.Tensor], float]
    target: float
    tolerance: float

    def __call__(self, keep: torch.Tensor) -> bool:
        """Whether ``keep``, bool ``[units]``, is within the target."""
        return self.cost(keep) <= self.target

    def closely(self, keep: torch.Tensor) -> bool:
        """Whether it leaves no more than the tolerance of the budget unused."""
        return self.target - self.cost(keep) <= self.tolerance


def give_back(
    keep: torch.Tensor,
    over: torch.Tensor,
    asked: torch.Tensor,
    widths: Widths,
    group: torch.Tensor,
    fits: Fits,
) -> torch.Tensor:
    """Restore units of ``over``, then of all that tasks ``asked`` about, while the result fits."""
    blocked = torch.zeros(int(group.max()) + 1, dtype=torch.bool)
    for pool in (over & asked, asked):
        while True:
            offered = pool & ~keep & ~blocked[group]
            order = widths.by_importance[offered[widths.by_importance]]
            taken, keep = _longest_prefix(keep, order, widths, fits)
            if taken == len(order):
                break
            if fits.closely(keep):
                return keep
            # Costs only grow as units come back: what does not fit now never will.
            blocked[group[order[taken]]] = True
    return keep


def _longest_prefix(
    keep: torch.Tensor, order: torch.Tensor, widths: Widths, fits: Fits
) -> tuple[int, torch.Tensor]:
    """How many of ``order`` can come back, by doubling and bisection, and the kept set with them."""

    def restored(count: int) -> torch.Tensor:
        more = keep.clone()
        more[order[:count]] = True
        return widths.settle(more)

    fitting, best, failing, count = 0, keep, len(order) + 1, 1
    while fitting + 1 < failing:
        trial = restored(count)
        if fits(trial):
            fitting, best = count, trial
        else:
            failing = count
        count = min(2 * count, len(order)) if failing > len(order) else (fitting + failing) // 2
    return fitting, best
