"""Diagonal of the Hessian with respect to the gates: optimal brain damage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.checks import check_counts
from disparse_structured.scoring.probe import Probe


@dataclass(frozen=True)
class DiagonalHessian:
    """Half the second derivative of the loss with respect to each gate, at least 0.

    LeCun, Denker, Solla, "Optimal brain damage", NIPS 1989, equation 5: the rise of the loss when a
    parameter (here: a gate of value 1) is set to zero at a minimum, without off-diagonal terms. The
    diagonal is estimated as the mean of ``v * (H v)`` over random sign vectors ``v`` (Hutchinson's
    estimator; Bekas, Kokiopoulou, Saad, 2007). Where the curvature, or the noise of the estimate, is
    negative, the second-order estimate of the rise is below zero and the saliency is 0.

    For a label-free task, the loss is half the mean squared distance of its output from the dense one,
    whose Hessian is the Gauss-Newton matrix.

    Args:
        directions: sign vectors per sample. Time and memory are those of double backward passes,
            several times those of the other criteria; the noise falls with the square root of
            directions times samples.
    """

    directions: int = 1

    def __post_init__(self) -> None:
        check_counts(directions=self.directions)

    def __call__(self, probe: Probe) -> torch.Tensor:
        """float64 ``[tasks, units]``; the noise depends on how the loader cuts the samples into batches."""
        total = probe.zeros()
        for found in probe.curvatures(self.directions):
            total[found.task] += found.weight * found.diagonal
        return (total / max(probe.samples, 1)).clamp_min(0) / 2
