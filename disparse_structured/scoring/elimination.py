"""The order of removal within a group: each time the units that cost least once the others have adapted.

Removing a unit changes what the layers that read it compute. Least squares from the units that are left makes
up for a part of that. The rest follows from the inverse of the Gram matrix in closed form, for every unit at
once, before and after each removal (optimal brain surgeon; Hassibi and Stork, NIPS 1992). Of two units that
can stand in for each other, one is cheap, and the other is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PARTS = 16
"""One unit is removed at a time, or one of so many that are left: about a hundred times for 1,000 units."""

MOST = 2**27
"""Most numbers of all inverses of a group together, 1 GiB: 8 layers that read 4,096 units."""

_RISE = 1e-9
"""By how much each unit costs more than the one before, at least."""


def elimination_costs(readers: Sequence[tuple[Tensor, Tensor]], ridge: float) -> Tensor:
    """Return what each unit costs when its turn comes, float64 ``[units]``, ascending in that order.

    Args:
        readers: for each layer that reads the units, the products of its inputs, ``[groups, units, units]``,
            and its weight, ``[groups, rows, units]``, a row for each output at each kernel position. What is
            lost of the squared outputs is added up over the layers.
        ridge: in units of the mean of the Gram matrix's diagonal.
    """
    inverses = [_inverse(gram, ridge) for gram, _ in readers]
    weights = [_fewest_rows(weight) for _, weight in readers]
    left = torch.arange(weights[0].shape[2])
    costs = weights[0].new_zeros(len(left))
    least = costs.new_zeros(1)
    while len(left):
        cost = costs.new_zeros(len(left))
        for inverse, weight in zip(inverses, weights, strict=True):
            cost += (weight.square().sum(1) / inverse.diagonal(dim1=1, dim2=2)).sum(0)
        order = cost.argsort(stable=True)
        going, staying = order.tensor_split([max(1, len(left) // PARTS)])
        # What others stood in for until now may have become cheaper; its turn comes later all the same.
        levels = torch.cat([least, cost[going]]).cummax(0).values[1:]
        costs[left[going]] = levels * (1 + _RISE * torch.arange(1, len(going) + 1, dtype=levels.dtype))
        least = costs[left[going[-1:]]]
        for number, (inverse, weight) in enumerate(zip(inverses, weights, strict=True)):
            columns = inverse[:, :, going]
            near = columns[:, staying]
            share = torch.linalg.solve(columns[:, going], near.mT)
            weights[number] = weight[:, :, staying].baddbmm_(weight[:, :, going], share, alpha=-1)
            inverses[number] = inverse[:, staying][:, :, staying].baddbmm_(near, share, alpha=-1)
        left = left[staying]
    return costs


def _fewest_rows(weight: Tensor) -> Tensor:
    """Return at most as many rows as columns, with the same products of columns."""
    rows, columns = weight.shape[1:]
    return torch.linalg.qr(weight, mode="r").R if rows > columns else weight


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    damped = gram.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    diagonal += torch.where(mean > 0, mean * ridge, torch.ones_like(mean))
    inverse: Tensor = torch.linalg.inv(damped)
    return inverse
