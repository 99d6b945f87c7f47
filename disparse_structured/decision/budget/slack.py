"""Using up what a kept set leaves of the budget.

A cost may be a staircase. Then many units come back for nothing, the next one for the price of a whole step,
and a wider layer may even cost less.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from disparse_structured.decision.budget.unit_costs import spread
from disparse_structured.decision.budget.widths import Widths

_TRADE = 4
_TRIALS = 6000
_WIDTHS_TRIED = 32


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
    fits: Fits,
) -> torch.Tensor:
    """Restore units of ``over``, then of all that tasks ``asked`` about, while the result fits."""
    group = widths.group
    blocked = torch.zeros(len(widths.dense), dtype=torch.bool)
    for pool in (over & asked, asked):
        while True:
            offered = pool & ~keep & ~blocked[group]
            order = widths.by_importance[offered[widths.by_importance]]
            taken, keep = _longest_prefix(keep, order, widths, fits)
            if taken == len(order):
                break
            if fits.closely(keep):
                return keep
            # Where costs only grow as units come back, what does not fit now never will.
            blocked[group[order[taken]]] = True
    return keep


def give_back_free(
    keep: torch.Tensor, offered: torch.Tensor, widths: Widths, cost: Callable[[torch.Tensor], float]
) -> torch.Tensor:
    """Restore the units of ``offered`` whose return costs nothing, until there are none left."""
    before = None
    while before is None or not torch.equal(before, keep):
        before = keep
        for order in _by_group(offered & ~keep, widths):
            _, keep = _longest_prefix(keep, order, widths, Fits(cost, cost(keep), 0.0))
    return keep


def cheapest(
    keep: torch.Tensor, offered: torch.Tensor, widths: Widths, cost: Callable[[torch.Tensor], float]
) -> torch.Tensor:
    """``keep`` with units of ``offered`` restored, group by group, as long as that lowers the cost.

    ``keep`` itself where costs only grow as units come back.
    """
    before = None
    while before is None or not torch.equal(before, keep):
        before = keep
        for order in _by_group(offered & ~keep, widths):
            wider = [_restored(keep, order[:count], widths) for count in spread(len(order), _WIDTHS_TRIED)]
            keep = min((keep, *wider), key=cost)
    return keep


def _by_group(units: torch.Tensor, widths: Widths) -> list[torch.Tensor]:
    """int64 indices of ``units``, bool ``[units]``, for each group that has some: most important first."""
    order = widths.within[units[widths.within]]
    counts = widths.counts(units)
    return list(torch.split(order, counts[counts > 0].tolist()))


def trade(keep: torch.Tensor, removable: torch.Tensor, widths: Widths, fits: Fits) -> torch.Tensor:
    """In a small network, where one unit can be more than the tolerance: let groups trade units.

    Some groups give up their least important units that the arbiter would remove at a higher ratio, others
    get some back. The smallest trade that lands within the tolerance wins, or else the one that comes
    closest; ``keep`` itself if none is better.
    """
    best, cost = keep, fits.cost(keep)
    traders = [_Trader.of(members, keep, removable) for members in widths.members()]
    fewest = np.array([-len(trader.leaving) for trader in traders])
    most = np.array([len(trader.returning) for trader in traders])
    tried: set[bytes] = set()
    for asked in _trades(widths, widths.counts(keep)):
        change = asked.clip(fewest, most)
        if change.tobytes() in tried:
            continue
        tried.add(change.tobytes())
        trial = widths.settle(_traded(keep, traders, change))
        found = fits.cost(trial)
        if cost < found <= fits.target:
            best, cost = trial, found
            if fits.closely(best):
                break
    return best


def _trades(widths: Widths, counts: np.ndarray) -> list[np.ndarray]:
    """Changes of the counts, smallest first: all of them in a tiny network, else those of two blocks."""
    dense = widths.dense
    if math.prod(dense.tolist()) <= _TRIALS:
        changes = [np.array(each) - counts for each in itertools.product(*(range(1, n + 1) for n in dense))]
    else:
        sizes = [0, *(int(step) * count for step in np.unique(widths.step) for count in range(1, _TRADE + 1))]
        changes = [
            more * second - fewer * first
            for fewer, more in itertools.product(sizes, sizes)
            for first, second in itertools.permutations(widths.blocks, 2)
        ]
    changes.sort(key=lambda change: (int(np.abs(change).sum()), change.tolist()))
    return changes[:_TRIALS]


@dataclass(frozen=True)
class _Trader:
    """The units of a group that can come back and those that it can give up, most important first."""

    returning: torch.Tensor
    leaving: torch.Tensor

    @classmethod
    def of(cls, members: torch.Tensor, keep: torch.Tensor, removable: torch.Tensor) -> _Trader:
        kept = keep[members]
        return cls(members[~kept], members[kept & removable[members]])


def _traded(keep: torch.Tensor, traders: Sequence[_Trader], change: np.ndarray) -> torch.Tensor:
    """``keep`` after ``change``, int64 ``[groups]``, which asks for no more units than there are."""
    traded = keep.clone()
    for group in np.flatnonzero(change).tolist():
        more, trader = int(change[group]), traders[group]
        if more > 0:
            traded[trader.returning[:more]] = True
        else:
            traded[trader.leaving[len(trader.leaving) + more :]] = False
    return traded


def _longest_prefix(
    keep: torch.Tensor, order: torch.Tensor, widths: Widths, fits: Fits
) -> tuple[int, torch.Tensor]:
    """How many of ``order`` can come back, by doubling and bisection, and the kept set with them."""
    fitting, best, failing, count = 0, keep, len(order) + 1, 1
    while fitting + 1 < failing:
        trial = _restored(keep, order[:count], widths)
        if fits(trial):
            fitting, best = count, trial
        else:
            failing = count
        count = min(2 * count, len(order)) if failing > len(order) else (fitting + failing) // 2
    return fitting, best


def _restored(keep: torch.Tensor, units: torch.Tensor, widths: Widths) -> torch.Tensor:
    more = keep.clone()
    more[units] = True
    return widths.settle(more)
