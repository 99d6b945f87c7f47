"""Where on the way from removing nothing to removing all that the tasks can vote on the budget is met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from disparse_structured.decision.budget.slack import Fits

_RATIO_STEP = 1e-9
_RATIOS_TRIED = 16


@dataclass(frozen=True, eq=False)
class Bracket:
    """Two ratios, as close as they get: at the lower the decision costs too much, at the higher it fits.

    Args:
        ratio: the higher one.
        over, within: bool ``[units]``, the kept sets at the lower and at the higher ratio.
    """

    ratio: float
    over: torch.Tensor
    within: torch.Tensor


def bracket(
    decided: Callable[[float], torch.Tensor], widest: torch.Tensor, narrowest: torch.Tensor, fits: Fits
) -> Bracket | None:
    """Bisection between ratio 0, at which the decision does not fit, and a ratio at which it does.

    That is ratio 1, unless narrower can cost more. Then it is the smallest of a few evenly spread ratios at
    which the decision fits, or None if there is no such ratio.

    Args:
        decided: the kept set, bool ``[units]``, with legal widths, at a ratio.
        widest, narrowest: those at ratio 0 and 1.
        fits: the cost against the target.
    """
    low, over, high, within = 0.0, widest, 1.0, narrowest
    if not fits(within):
        for step in range(1, _RATIOS_TRIED):
            high, within = step / _RATIOS_TRIED, decided(step / _RATIOS_TRIED)
            if fits(within):
                break
            low, over = high, within
        else:
            return None
    while high - low > _RATIO_STEP and int((over ^ within).sum()) > 1:
        ratio = (low + high) / 2
        keep = decided(ratio)
        if fits(keep):
            high, within = ratio, keep
        else:
            low, over = ratio, keep
    return Bracket(high, over, within)
