"""Fisher information of the gates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.scoring.probe import Probe


@dataclass(frozen=True)
class Fisher:
    """Half the mean over the samples of the squared gate gradient of each sample's own loss.

    It is the rise of a negative log-likelihood at an optimum when the gate closes, to second order, with
    the Fisher information in place of the Hessian (Theis et al., "Faster gaze prediction with dense
    networks and Fisher pruning", 2018, section 2.2; Liu et al., "Group Fisher Pruning", ICML 2021).

    For a label-free task, it is half the mean, over samples and output elements, of the squared
    first-order response of the output to closing the gate.
    """

    def __call__(self, probe: Probe) -> torch.Tensor:
        """float64 ``[tasks, units]``; the same however the loader cuts the samples into batches."""
        return probe.average(torch.square) / 2
