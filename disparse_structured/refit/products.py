"""Sums of products of features, of which only one triangle is computed."""

from __future__ import annotations

from torch import Tensor

_BLOCK = 512
"""Columns in a block: large enough for a fast product, and half of the matrix is left out in the end."""


def add_products(gram: Tensor, rows: Tensor) -> None:
    """Adds ``rows^T rows``, of ``rows [groups, rows, features]``, to the lower triangle of ``gram``.

    Products are computed in the type of ``rows``. What blocks hold above the diagonal is added too.
    """
    for start in range(0, gram.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        part, left = gram[:, block, : block.stop], rows[:, :, block].mT
        if part.dtype == rows.dtype:
            part.baddbmm_(left, rows[:, :, : block.stop])
        else:
            part += left @ rows[:, :, : block.stop]


def complete(gram: Tensor) -> None:
    """Copies the lower triangle of ``gram [groups, features, features]`` into the upper one."""
    for start in range(_BLOCK, gram.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        gram[:, :start, block] = gram[:, block, :start].mT
