"""Tensors in another precision: complex ones keep both parts."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_WITH_COMPLEX = (torch.float32, torch.float64)
"""The types whose complex counterparts torch computes in."""


def is_inexact(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is real or complex, not integer or bool."""
    return tensor.is_floating_point() or tensor.is_complex()


def first_inexact(tensors: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """Return the first real or complex one of ``tensors``; None if there is none."""
    return next(filter(is_inexact, tensors), None)


def in_precision(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``tensor`` in the precision of ``dtype``: real or complex, as it was.

    Integer and bool tensors are returned unchanged, and so are complex ones if the precision is below single.

    >>> in_precision(torch.tensor([1 + 2j]), torch.float64)
    tensor([1.+2.j], dtype=torch.complex128)
    """
    real = dtype.to_real() if dtype.is_complex else dtype
    if tensor.is_complex():
        return tensor.to(real.to_complex()) if real in _WITH_COMPLEX else tensor
    return tensor.to(real) if tensor.is_floating_point() else tensor


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor``, or the parts of a complex one along a new last dimension of size 2."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
