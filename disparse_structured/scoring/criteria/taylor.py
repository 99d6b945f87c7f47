"""First-order Taylor expansion, one sample at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.scoring.probe import Probe


@dataclass(frozen=True)
class Taylor:
    """Mean over the samples of the absolute gate gradient of each sample's own loss.

    It is the first-order change of a sample's loss when the gate closes, its absolute value averaged over
    the samples (Molchanov et al., "Pruning convolutional neural networks for resource efficient
    inference", ICLR 2017, section 2.2). It omits that paper's division by the size of the map and by the
    layer's norm, to compare the change of the loss itself.
    """

    def __call__(self, probe: Probe) -> torch.Tensor:
        """float64 ``[tasks, units]``; the same however the loader cuts the samples into batches."""
        return probe.average(torch.abs)
