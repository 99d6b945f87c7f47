"""The parts of an output that are judged by themselves, so that large values do not hide small ones."""

from __future__ import annotations

import torch


def by_channel(values: torch.Tensor) -> list[torch.Tensor]:
    """Return the largest of ``values`` in each channel and in each column.

    A channel is an index of dimension 1, a column one of the last dimension. A tensor of fewer than two
    dimensions is one channel.

    >>> [each.tolist() for each in by_channel(torch.tensor([[640.0, 0.5], [320.0, 0.25]]))]
    [[640.0, 0.5]]
    """
    if values.ndim < 2:
        return [values.max().reshape(1)]
    dims = sorted({1, values.ndim - 1})
    return [values.amax([each for each in range(values.ndim) if each != dim]) for dim in dims]
