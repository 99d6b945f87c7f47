"""Removed channels merged into kept ones: the weights that read them are added up.

A removed channel is treated as a multiple of the kept one that explains most of it (model folding: Wang et
al., ICLR 2025, which clusters channels of one layer; here, similarity is that of the layer's input data).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from disparse_structured.checks import check_counts
from disparse_structured.graph.schedule import Step
from disparse_structured.refit.context import RefitContext, Sample, check_settings
from disparse_structured.refit.contraction import Contraction, Operands
from disparse_structured.refit.folds import folds
from disparse_structured.refit.lockstep import MEMORY
from disparse_structured.refit.regression import FOLDS, Center, Shape

_PLACES = 1024
"""Most positions of a chunk's input at which channels are compared."""


class Merging:
    """How similar the kept channels of the twin's input are to the lost ones of the dense network's."""

    def __init__(self, work: RefitContext, contraction: Contraction, lost: Contraction) -> None:
        self._work, self._contraction, self._lost = work, contraction, lost
        device = work.state[contraction.weight].device
        groups, kept = contraction.inputs.shape

        def zeros(*size: int) -> list[Tensor]:
            return [torch.zeros(groups, *size, dtype=torch.float64, device=device) for _ in FOLDS]

        self._squares, self._products = zeros(kept), zeros(kept, lost.inputs.shape[1])

    @classmethod
    def of(cls, work: RefitContext, contraction: Contraction) -> Merging | None:
        """Create one for ``contraction``; None if no lost input channel can be merged."""
        lost = contraction.lost()
        return None if lost is None else cls(work, contraction, lost)

    def add(self, sample: Sample) -> None:
        """Add the inputs of the sample's operator and chunk."""
        walk = self._work.walk
        kept = self._channels(sample, self._contraction, walk.arguments(sample.node, sample.chunk)[0])
        lost = self._channels(sample, self._lost, walk.arguments(sample.node, sample.chunk, dense=True)[0])
        self._squares[sample.fold] += kept.square().sum(2)
        self._products[sample.fold] += kept @ lost.mT

    def center(self) -> Center:
        """Return the changes that add each lost channel's weights to the most similar kept one's."""
        squares = [*self._squares, self._squares[0] + self._squares[1]]
        products = [*self._products, self._products[0] + self._products[1]]
        one, other, both = (self._change(*pair) for pair in zip(squares, products, strict=True))
        return one, other, both

    def _change(self, squares: Tensor, products: Tensor) -> Tensor:
        usable = squares > 1e-12 * squares.amax(1, keepdim=True)
        scale = torch.where(usable, 1 / torch.where(usable, squares, 1), 0)[:, :, None]
        like = (products.square() * scale).argmax(1, keepdim=True)
        share = torch.zeros_like(products).scatter_(1, like, (products * scale).gather(1, like))
        weight = self._lost.matrix(self._work.state[self._lost.weight]).double()
        groups, outputs, _ = weight.shape
        weight = weight.reshape(groups, outputs, self._lost.inputs.shape[1], -1)
        return torch.einsum("golk,gcl->gock", weight, share).reshape(groups, outputs, -1)

    def _channels(self, sample: Sample, contraction: Contraction, value: Tensor) -> Tensor:
        """float64 ``[groups, channels, places]``."""
        inputs = contraction.inputs.reshape(-1).to(value.device)
        if Operands.of(sample.node).kind == "linear":
            flat = value.reshape(-1, value.shape[-1]).mT
        else:
            flat = value.movedim(-contraction.spatial - 1, 0).flatten(1)
        step = -(-flat.shape[1] // _PLACES)
        chosen = flat[:, ::step].index_select(0, inputs).double()
        return chosen.reshape(*contraction.inputs.shape, -1)


@dataclass(frozen=True)
class ModelFolding:
    """Merging alone: the weights of a removed channel are added to those of the most similar kept one.

    It is kept for the outputs whose error on held-out inputs falls. The scale of a merged channel is the
    slope of its regression on the kept one, without a constant.

    Args:
        rows: rows to compare on, for each unknown of an output.
        memory: bytes of activations to hold in memory; more are held in files.
        shifts: extra copies of every image to fit on, see :class:`LeastSquares`.
        seed: draws the positions to compare on.
    """

    rows: int = 1
    memory: int = MEMORY
    shifts: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(rows=self.rows)
        check_settings(self.memory, self.shifts, self.seed)

    def visit(self, work: RefitContext, step: Step) -> None:
        """Refit ``step``; see :class:`disparse_structured.refit.context.RefitMethod`."""
        contraction = work.contraction(step)
        merging = None if contraction is None else Merging.of(work, contraction)
        if contraction is None or merging is None:
            return
        share, rows = work.share(contraction, step, self.rows)
        groups, outputs = contraction.outputs.shape
        shape = Shape(groups, outputs, contraction.features, intercept=False)
        weight = work.state[contraction.weight]
        known = folds(shape, rows, weight.dtype, weight.device)
        scale = 0.0
        for sample in work.samples(contraction, step, share, streams=False):
            known.add(sample.fold, sample.inputs, sample.residuals)
            merging.add(sample)
            scale += float(sample.target.norm()) ** 2
        work.conclude(contraction, known, rows, scale, (None,), (merging.center(),))
