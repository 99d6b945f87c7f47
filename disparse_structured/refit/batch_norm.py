"""Running statistics of batch norms, re-estimated on the pruned network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from disparse_structured.graph.operators import named_arguments, packet
from disparse_structured.graph.schedule import Step
from disparse_structured.graph.unknown_sizes import depends_on_data
from disparse_structured.refit.context import APART, RefitContext, check_settings
from disparse_structured.refit.contraction import VARYING
from disparse_structured.refit.lockstep import MEMORY
from disparse_structured.report.refit import LayerFacts

aten = torch.ops.aten


@dataclass(frozen=True)
class BatchNormStatistics:
    """Re-estimates means and variances of batch norms on the masked network; weights are unchanged.

    They are what training mode would collect, over all inputs equally (unbiased variances, as in torch).
    Nothing is held out: the facts' errors are those of the batch norms' results on all inputs.

    Args:
        memory: bytes of activations to hold in memory; more are held in files.
        shifts: extra copies of every image to fit on, see :class:`LeastSquares`.
        seed: for what the loader draws.
    """

    memory: int = MEMORY
    shifts: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self.memory, self.shifts, self.seed)

    def visit(self, work: RefitContext, step: Step) -> None:
        """Refit ``step``; see :class:`disparse_structured.refit.context.RefitMethod`."""
        given = named_arguments(step[0]) if packet(step[0]) is aten.batch_norm else {}
        if not given or given["training"] or not isinstance(given["running_mean"], fx.Node):
            return
        tensors = work.walk.capture.tensors
        mean, variance = (tensors.get(given[each].name) for each in ("running_mean", "running_var"))
        if mean is None or variance is None:
            work.skip(str(step[0].name), "its running statistics are computed from other tensors")
            return
        if work.apart(step[0]):
            work.skip(mean, APART)
            return
        if any(map(depends_on_data, step)):
            work.skip(mean, VARYING)
            return
        kept = work.kept(mean).to(work.state[mean].device)
        count, center, spread = _moments(work, step, kept)
        if count < 2 or not bool(spread.isfinite().all()):
            work.skip(mean, "it reads NaN or infinite values" if count > 1 else "it reads a single value")
            return
        replaced = {}
        for name, found in ((mean, center), (variance, spread / (count - 1))):
            replaced[name] = work.state[name].index_copy(0, kept, found.to(work.state[name]))
        before, after = (_error(work, step, kept, state) for state in ({}, replaced))
        work.replace(LayerFacts(mean, 2, count, before, after), replaced)


def _moments(work: RefitContext, step: Step, kept: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many values each channel has, their mean, and the sum of squared distances from it; float64."""
    count = 0
    mean = torch.zeros(len(kept), dtype=torch.float64, device=kept.device)
    spread = torch.zeros_like(mean)
    for chunk in range(work.walk.chunks):
        for node in step:
            read = _channels(work.walk.arguments(node, chunk)[0], kept).double()
            size = read.shape[1]
            own = read.mean(1)
            # Chan, Golub and LeVeque (1979): exact even where the mean is large.
            spread += (read - own[:, None]).square().sum(1)
            spread += (own - mean).square() * (count * size / (count + size))
            mean += (own - mean) * (size / (count + size))
            count += size
    return count, mean, spread


def _error(work: RefitContext, step: Step, kept: Tensor, replaced: dict[str, Tensor]) -> float:
    """The error of the twin's results with ``replaced`` statistics, relative to the dense ones."""
    off = whole = 0.0
    for chunk in range(work.walk.chunks):
        for node in step:
            wanted = _channels(work.walk.dense_result(node, chunk), kept).double()
            result: Any = work.walk.compute(node, chunk, replaced)
            off += float((_channels(result, kept).double() - wanted).square().sum())
            whole += float(wanted.square().sum())
    return math.sqrt(off / whole) if whole else 0.0


def _channels(value: Tensor, kept: Tensor) -> Tensor:
    """``[kept, values]``."""
    return value.index_select(1, kept).movedim(1, 0).flatten(1)
