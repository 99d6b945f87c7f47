"""Norm of a unit's weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from disparse_structured.checks import shown
from disparse_structured.errors import OptionError
from disparse_structured.scoring.probe import Probe


@dataclass(frozen=True)
class Magnitude:
    """L1 or L2 norm of all weights of a unit, those that produce it and those that read it.

    Li et al., "Pruning filters for efficient ConvNets", ICLR 2017, taken over the whole channel group
    (Fang et al., "DepGraph", CVPR 2023). Weights are the parameters with at least two dimensions: biases
    and the scales and shifts of normalizations differ in magnitude and are left out. No data is read;
    every task that reaches a unit gives it the same score.

    Args:
        p: 1 or 2.
    """

    p: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.p, bool) or not isinstance(self.p, int) or self.p not in (1, 2):
            raise OptionError(f"p={shown(self.p)} must be 1 or 2: the L1 or the L2 norm.")

    def __call__(self, probe: Probe) -> torch.Tensor:
        """float64 ``[tasks, units]``, equal rows."""
        parameters = dict(probe.model.named_parameters(remove_duplicate=False))
        total = torch.zeros(probe.structure.units, dtype=torch.float64)
        for group in probe.structure.groups:
            for member in group.members:
                weight = parameters.get(member.parameter)
                if weight is not None and weight.ndim >= 2:
                    found = self._along(weight, member.dim)
                    total[group.slice] += found[torch.from_numpy(member.index)].sum(dim=1)
        if self.p == 2:
            total = total.sqrt()
        return total.expand(len(probe.structure.tasks), -1)

    def _along(self, weight: nn.Parameter, dim: int) -> torch.Tensor:
        """float64 ``[size]``: the sum of the powers at each position along ``dim``."""
        rows = weight.detach().movedim(dim, 0).flatten(1)
        norms: torch.Tensor = torch.linalg.vector_norm(rows, self.p, dim=1)
        return norms.cpu().double() ** self.p
