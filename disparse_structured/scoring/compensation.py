"""Layers' weights after some of their inputs are removed: closed form, from one pass through the network.

A layer computes ``Y = X W^T`` exactly, so least squares from the kept columns needs no targets: the
removed columns are regressed on the kept ones, which take over their contribution (optimal brain surgeon
for whole channels; Hassibi and Stork, NIPS 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from disparse_structured.refit.contraction import Contraction
from disparse_structured.refit.design import design, positions
from disparse_structured.refit.folds import AT_ONCE
from disparse_structured.refit.products import add_products, complete
from disparse_structured.scoring.execution import Execution, State, Values

RIDGE = 1e-3
"""In units of the mean of the Gram matrix's diagonal."""

FEWEST, MOST = 2048, 8192
"""Fewest and most rows drawn for a layer; in between, four for each feature."""


class Compensation:
    """The inputs of every layer of ``contractions`` on some chunks, as sums of products or as rows.

    Everything is in single precision, on the model's device. A layer with ``n`` features (input channels
    of a group times kernel positions) takes ``n x n`` numbers for each group, or its rows of ``n`` if
    there are at most half as many. From ``n`` = 8,193 on, it takes :data:`FEWEST` rows. A 3x3 convolution
    over 2,048 channels takes 150 MB, the largest Gram matrix 270 MB.
    """

    def __init__(self, contractions: Sequence[Contraction]) -> None:
        self._by_node = {node: each for each in contractions for node in each.nodes}
        self._known = {each.weight: _Inputs(each) for each in contractions}

    def observe(
        self,
        execution: Execution,
        state: State,
        chunks: Sequence[tuple[Any, ...]],
        generator: torch.Generator,
    ) -> None:
        """Add one pass of ``execution`` with the weights ``state`` through ``chunks`` of equal size.

        Where layers have more output positions than needed, ``generator`` samples some.
        """
        for chunk in chunks:

            def visit(node: fx.Node, values: Values) -> None:
                contraction = self._by_node.get(node)
                if contraction is None:
                    return
                value = execution.argument(node, values, state)
                total, examples = positions(node, node.meta["val"])
                share = len(chunks) * len(contraction.nodes) * examples
                places = torch.randperm(total, generator=generator)
                places = places[: math.ceil(_wanted(contraction.features) / share)].sort().values
                self._known[contraction.weight].add(design(contraction, node, value, places))

            execution.walk(state, chunk, visit)

    def without(self, base: Contraction, kept: Contraction, state: State) -> State:
        """Return the tensors of ``state`` that change when ``base`` only reads the columns of ``kept``.

        The ridge regression of the removed columns on the kept ones changes the latter; its constant
        changes the bias (or the running mean that follows). Nothing changes where a layer loses no columns
        or whole groups (a depthwise convolution's are its channels), or where there is no solution.

        Args:
            base: one of this object's contractions.
            kept: the same with fewer columns; its rows are ignored.
            state: the weights as they were observed.
        """
        if len(kept.columns) == len(base.columns) or kept.groups != base.groups:
            return {}
        if _per_group(base):
            return {}
        weight = state[base.weight]
        matrix = base.matrix(weight)
        columns = _features(base, kept.columns.numpy()).reshape(-1)
        found = self._known[base.weight].moved(matrix, columns.to(matrix.device))
        if found is None:
            return {}
        change, constant = found
        full = matrix.clone()
        full[:, :, columns] += change.to(matrix)
        changed = {base.weight: base.with_matrix(weight, full)}
        for name in base.bias:
            bias = state[name].clone()
            bias[base.outputs.reshape(-1)] += (-1 if base.subtracts else 1) * constant.reshape(-1).to(bias)
            changed[name] = bias
        return changed

    def read(self, base: Contraction, index: np.ndarray, state: State) -> tuple[Tensor, Tensor] | None:
        """Return what one of this object's contractions reads of some units, and with which weight.

        These are ``[groups, units, units]``, the products of their inputs, summed over kernel positions, and
        ``[groups, rows, units]``, with a row for each output at each kernel position, scaled so that the
        squares of what the rows compute add up to 1; float64, on the CPU. None if nothing was added, or all
        is zero.

        Args:
            base: one of this object's contractions.
            index: int64 ``[units, multiplicity]``: the units' positions along the weight's input dimension.
            state: the weights as they were observed.
        """
        if _per_group(base):
            return None
        columns = _features(base, index).to(state[base.weight].device)
        gram = self._known[base.weight].products(columns)
        if gram is None:
            return None
        weight = base.matrix(state[base.weight])[:, :, columns].movedim(3, 1).flatten(1, 2)
        gram, weight = gram.cpu().double(), weight.cpu().double()
        power = float(((weight @ gram) * weight).sum())
        return (gram, weight / math.sqrt(power)) if 0 < power < math.inf else None


class _Inputs:
    """``X [groups, rows, features]`` of one layer: its moments, or ``X`` itself if it has far fewer rows."""

    def __init__(self, contraction: Contraction) -> None:
        self._constant = bool(contraction.bias)
        self._rows: list[Tensor] = []
        self._held = 0
        self._most = math.inf if contraction.features > MOST else contraction.features // 2
        self._gram: Tensor | None = None
        self._sum: Tensor | None = None
        self._count = 0
        self._centered = False

    def add(self, rows: Tensor) -> None:
        rows = rows.float()
        self._count += rows.shape[1]
        total = rows.sum(1)
        self._sum = total if self._sum is None else self._sum + total
        self._rows.append(rows)
        self._held += rows.shape[1]
        if self._held > (self._most if self._gram is None else AT_ONCE):
            self._multiply()

    def _multiply(self) -> None:
        """Turns the rows that are held into their products."""
        rows = torch.cat(self._rows, 1)
        if self._gram is None:
            self._gram = rows.new_zeros(rows.shape[0], rows.shape[2], rows.shape[2])
        add_products(self._gram, rows)
        self._rows, self._held = [], 0

    def moved(self, matrix: Tensor, kept: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the columns ``kept`` of ``matrix [groups, out, features]`` gain, and the constant.

        ``[groups, out, kept]`` and ``[groups, out]``; None if nothing was added or there is no solution.
        """
        if self._sum is None:
            return None
        removed = torch.ones(matrix.shape[2], dtype=torch.bool, device=matrix.device)
        removed[kept] = False
        mean = self._sum / self._count
        self._center(mean)
        lost = matrix[:, :, removed].float()
        if self._gram is None:
            (rows,) = self._rows
            near, far = rows[:, :, kept], rows[:, :, removed]
            change = near.mT @ _solved(near @ near.mT, far @ lost.mT, near.shape[1] / near.shape[2])
        else:
            near = self._gram[:, kept]
            change = _solved(near[:, :, kept], near[:, :, removed] @ lost.mT, 1.0)
        if not bool(change.isfinite().all()):
            return None
        change = change.mT
        shift = (lost @ mean[:, removed, None] - change @ mean[:, kept, None])[..., 0]
        return change, shift if self._constant else torch.zeros_like(shift)

    def products(self, columns: Tensor) -> Tensor | None:
        """The products of the features ``columns [units, n]``, ``[groups, units, units]``, summed over ``n``.

        None if nothing was added.
        """
        if self._sum is None:
            return None
        self._center(self._sum / self._count)
        total = self._sum.new_zeros(len(self._sum), len(columns), len(columns))
        for each in columns.unbind(1):
            if self._gram is None:
                (rows,) = self._rows
                near = rows[:, :, each]
                total.baddbmm_(near.mT, near)
            else:
                total += self._gram[:, each[:, None], each]
        return total

    def _center(self, mean: Tensor) -> None:
        """Joins what was added, and subtracts the mean where a constant makes up for it."""
        if self._centered:
            return
        self._centered = True
        if self._gram is None:
            rows = torch.cat(self._rows, 1)
            self._rows = [rows.sub_(mean[:, None]) if self._constant else rows]
            return
        if self._rows:
            self._multiply()
        complete(self._gram)
        if self._constant:
            self._gram.baddbmm_(self._count * mean[:, :, None], mean[:, None], alpha=-1)


def _per_group(base: Contraction) -> bool:
    """Whether each group's inputs have their own positions along the weight's input dimension."""
    return base.transposed and base.groups > 1


def _features(base: Contraction, positions: np.ndarray) -> Tensor:
    """int64: the features of kept ``positions`` along the weight's input dimension, a row for each."""
    channels = np.searchsorted(base.columns.numpy(), positions)
    kernel = base.features // base.inputs.shape[1]
    features = channels[..., None] * kernel + np.arange(kernel)
    return torch.from_numpy(features.reshape(len(positions), -1))


def _solved(gram: Tensor, right: Tensor, scale: float) -> Tensor:
    """``(gram + ridge)^-1 right``; zero where the Gram matrix is zero."""
    diagonal = gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    damped = gram.clone()
    damped.diagonal(dim1=1, dim2=2).add_(
        torch.where(diagonal > 0, diagonal * RIDGE * scale, torch.ones_like(diagonal))
    )
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        return torch.full_like(right, torch.nan)
    return torch.cholesky_solve(right, factor)


def _wanted(features: int) -> int:
    return FEWEST if features > MOST else min(max(4 * features, FEWEST), MOST)
