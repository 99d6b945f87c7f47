"""How far tensors differ, by channel and column, so that large values do not hide small ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_SMALL = {torch.float64: 1e-6, torch.float32: 1e-1}
"""A channel's difference is relative to its largest value, or to this fraction of the output's, if larger."""


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


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value of its channel or column.

    So large values, such as coordinates, do not hide small ones, such as scores, in the same tensor. It is
    infinite if the shapes or the non-finite values differ.
    """
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not (actual.is_complex() or actual.is_floating_point()):
        actual, expected = actual.double(), expected.double()
    finite = expected.isfinite()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if not same[~finite].all():
        return float("inf")
    error = torch.where(finite, (actual - expected).abs(), 0).nan_to_num(torch.inf, torch.inf)
    size = torch.where(finite, expected.abs(), 0)
    if not error.any():
        return 0.0
    least = _SMALL.get(size.dtype, _SMALL[torch.float32]) * size.max()
    pairs = zip(by_channel(error), by_channel(size), strict=True)
    worst = max((errors / sizes.clamp_min(least)).max() for errors, sizes in pairs)
    return float(worst.nan_to_num(torch.inf, torch.inf))


def close(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float) -> bool:
    """Check whether tensors agree one by one in shape and, within ``tolerance``, by :func:`difference`."""
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(difference(a, b) <= tolerance for a, b in pairs)
