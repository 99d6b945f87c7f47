"""Random scores: what every other criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.data.randomness import generator
from disparse_structured.scoring.probe import Probe


@dataclass(frozen=True)
class Random:
    """Uniform scores in [0, 1), drawn separately for each task from the seed and the group's name."""

    def __call__(self, probe: Probe) -> torch.Tensor:
        """float64 ``[tasks, units]``; no data is read."""
        scores = probe.zeros()
        for row, task in enumerate(probe.structure.tasks):
            for group in probe.structure.groups:
                drawn = generator(probe.seed, "random", task, group.name).random(group.units)
                scores[row, group.slice] = torch.from_numpy(drawn)
        return scores
