"""What a unit costs, also where the cost falls in steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from disparse_structured.decision.contracts import CostModel
from disparse_structured.errors import OptionError
from disparse_structured.structure.groups import ChannelGroup

_WIDTHS_TRIED = 32
"""At how many widths of a group its cost is looked at; at all of them, where there are no more."""


def unit_costs(cost: CostModel, keep: torch.Tensor, groups: Sequence[ChannelGroup]) -> torch.Tensor:
    """float64 ``[units]``: what removing one unit from ``keep``, bool ``[units]``, saves.

    This is the marginal cost, unless some group shows that the cost is a staircase: its marginal cost is 0,
    yet narrowing it further saves something. Marginal costs then depend on where in its step a width
    happens to lie. So every unit counts as its share of the steepest fall of its group: the largest saving
    per unit that narrowing the group alone, to any width, can bring.

    Raises:
        OptionError: the marginal costs are not one finite number for each unit.
    """
    marginal = torch.as_tensor(cost.marginal(keep)).to("cpu", torch.float64)
    if marginal.shape != keep.shape or not bool(marginal.isfinite().all()):
        raise OptionError(
            f"{type(cost).__name__}.marginal returned {list(marginal.shape)}, expected one finite number for "
            f"each of the {len(keep)} units."
        )
    flat = [group for group in groups if not _saves(marginal, keep, group)]
    if not any(_steepest_fall(cost, keep, group) > 0 for group in flat):
        return marginal
    steepest = torch.zeros_like(marginal)
    for group in groups:
        steepest[group.slice] = _steepest_fall(cost, keep, group)
    return steepest


def _saves(marginal: torch.Tensor, keep: torch.Tensor, group: ChannelGroup) -> bool:
    return bool((marginal[group.slice][keep[group.slice]] > 0).any())


def _steepest_fall(cost: CostModel, keep: torch.Tensor, group: ChannelGroup) -> float:
    """The largest saving per unit that narrowing ``group`` alone brings, at least 0."""
    kept = group.start + keep[group.slice].nonzero().squeeze(1)
    total, falls = cost.total(keep), [0.0]
    for removed in spread(len(kept) - 1, _WIDTHS_TRIED):
        narrower = keep.clone()
        narrower[kept[len(kept) - removed :]] = False
        falls.append((total - cost.total(narrower)) / removed)
    return max(falls)


def spread(most: int, count: int) -> list[int]:
    """Up to ``count`` whole numbers from 1 to ``most``, evenly spread, with ``most`` among them."""
    return np.unique(np.linspace(1, most, min(most, count)).round().astype(int)).tolist() if most > 0 else []
