"""A scale and a shift for every output channel, where a full regression is too costly."""

from __future__ import annotations

from dataclasses import dataclass

from disparse_structured.graph.schedule import Step
from disparse_structured.refit.context import RefitContext, check_settings
from disparse_structured.refit.folds import folds
from disparse_structured.refit.lockstep import MEMORY
from disparse_structured.refit.regression import Fit, Shape


@dataclass(frozen=True)
class Affine:
    """Scales and shifts each layer's pre-activation, channel by channel, to be closest to the dense one's.

    Slope and constant are those of the least-squares line (not the ratio of the standard deviations, as in
    REPAIR, Jordan et al., ICLR 2023: where the two are poorly correlated, that amplifies the error). They
    are folded into the weight's rows and the bias, or the running mean of the next batch norm, and are kept
    where they lower the error on held-out data.

    Args:
        memory: bytes of activations to hold in memory; more are held in files.
        shifts: extra copies of every image to fit on, see :class:`LeastSquares`.
        seed: draws the positions to fit on.
    """

    memory: int = MEMORY
    shifts: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self.memory, self.shifts, self.seed)

    def visit(self, work: RefitContext, step: Step) -> None:
        """Refit ``step``; see :class:`disparse_structured.refit.context.RefitMethod`."""
        contraction = work.contraction(step)
        if contraction is None:
            return
        share, rows = work.share(contraction, step, rows=0)
        groups, outputs = contraction.outputs.shape
        weight = work.state[contraction.weight]
        # Each channel is its own regression, with what the layer computes as the only feature.
        shape = Shape(groups * outputs, 1, 1, bool(contraction.bias))
        known = folds(shape, rows, weight.dtype, weight.device)
        scale = 0.0
        for sample in work.samples(contraction, step, share, streams=False):
            pair = (sample.computed, sample.residuals)
            known.add(sample.fold, *(each.mT.reshape(groups * outputs, -1, 1) for each in pair))
            scale += float(sample.target.norm()) ** 2

        def expand(fit: Fit) -> Fit:
            matrix = contraction.matrix(weight).to(fit.change)
            return Fit(fit.change.view(groups, outputs, 1) * matrix, fit.intercept.view(groups, outputs))

        work.conclude(contraction, known, rows, scale, (None, 1e-9), expand=expand)
