"""Criteria that say how many units of each group to remove, but not which."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.data.randomness import generator
from disparse_structured.scoring import Criterion, Probe


@dataclass(frozen=True)
class Shuffled:
    """The scores of another criterion, dealt out at random among the units of each group.

    All tasks' scores of a unit go to the same other unit. So where the units of a group cost the same, the
    widths are those that ``criterion`` decides, and only the units are drawn (the sanity check of Su et
    al., NeurIPS 2020, and of Frankle et al., ICLR 2021).
    """

    criterion: Criterion

    def __call__(self, probe: Probe) -> torch.Tensor:
        """float64 ``[tasks, units]``; the order follows from the probe's seed and the group's name."""
        scores = self.criterion(probe)
        shuffled = scores.clone()
        for group in probe.structure.groups:
            order = generator(probe.seed, "shuffle", group.name).permutation(group.units)
            shuffled[:, group.slice] = scores[:, group.slice][:, torch.from_numpy(order)]
        return shuffled


@dataclass(frozen=True)
class LogWidths:
    """Scores under which each task asks for the widths with the largest ``sum_g share_g * log(width_g)``.

    ``share_g`` is what the scores of group g in ``criterion`` add up to. The k-th unit of a group scores
    ``share_g / k``, so ranking per cost adds units where the utility grows fastest per cost: the optimum of
    this concave utility under a cost that is linear in the widths. All tasks order the units of a group
    alike, so that unanimity gives it the widest of the widths that they ask for.
    """

    criterion: Criterion

    def __call__(self, probe: Probe) -> torch.Tensor:
        """float64 ``[tasks, units]``."""
        scores = self.criterion(probe)
        total = scores.sum(dim=1, keepdim=True)
        together = (scores / total.masked_fill(total == 0, 1.0)).sum(dim=0)
        found = torch.zeros_like(scores)
        for group in probe.structure.groups:
            order = group.start + together[group.slice].argsort(descending=True, stable=True)
            ranks = torch.arange(1, group.units + 1, dtype=torch.float64)
            found[:, order] = scores[:, group.slice].sum(dim=1, keepdim=True) / ranks
        return found
