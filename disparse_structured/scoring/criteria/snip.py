"""Connection sensitivity of the gates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.scoring.probe import Probe


@dataclass(frozen=True)
class SNIP:
    """Absolute gate gradient of the loss over all samples together.

    Lee et al., "SNIP: single-shot network pruning based on connection sensitivity", ICLR 2019, equation
    5, for gates of units instead of single weights. What helps one sample and hurts another cancels.

    For a label-free task, it is the response of one random projection of all outputs together, a noisy
    value; :class:`~disparse_structured.scoring.criteria.Fisher` averages over the samples instead.
    """

    def __call__(self, probe: Probe) -> torch.Tensor:
        """float64 ``[tasks, units]``; the same however the loader cuts the samples into batches."""
        return probe.average(lambda gradients: gradients, per_sample=False).abs()
