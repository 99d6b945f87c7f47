"""One-shot compensation as in GRAIL (Tang et al., Conference on Parsimony and Learning, PMLR 328, 2026;
arXiv 2602.23795): what a layer reads of removed channels is rebuilt from the kept ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.no_training.bench import Bench, reestimated
from benchmarks.no_training.ours import Ours
from disparse_structured.data.modes import eval_mode
from disparse_structured.decision.rankings import Ranking
from disparse_structured.graph.copies import copied
from disparse_structured.refit.contraction import Contraction, contractions
from disparse_structured.scoring import Criterion
from disparse_structured.structure import Structure
from disparse_structured.surgery.module import cut

RIDGE = 1e-3
"""Relative to the mean of the Gram matrix's diagonal, as in the authors' code."""

Grams = Mapping[str, Tensor]
"""By the name of the weight that reads them: float64 ``[channels, channels]``."""


@dataclass(frozen=True)
class Grail:
    """Units are removed by ``criterion`` and ``ranking``; each consumer's weight ``W`` becomes ``W B``.

    ``B = G[:, P] (G[P, P] + λ I)⁻¹`` with the Gram matrix ``G`` of its input channels over all positions
    in the dense network, and ``P`` the channels that are kept. Errors of earlier layers are not compensated,
    and no images are held out. Grouped and depthwise convolutions are sliced.

    Args:
        criterion, ranking: make the decision, without asking the tasks.
        batchnorm: re-estimate the statistics of batch norms from the images.
    """

    criterion: Criterion
    ranking: Ranking
    batchnorm: bool = False

    def __call__(self, bench: Bench, fraction: float) -> nn.Module:
        """The pruned network."""
        keep = bench.keep(self.criterion, self.ranking, fraction)
        return _compensated(bench, keep, self.batchnorm)


@dataclass(frozen=True)
class GrailOnOurs:
    """The same on the units that ``decision`` removes.

    Args:
        decision: gives the plan; its refit is not used.
        batchnorm: re-estimate the statistics of batch norms from the images.
    """

    decision: Ours
    batchnorm: bool = False

    def __call__(self, bench: Bench, fraction: float) -> nn.Module:
        """The pruned network."""
        plan = self.decision.pruned(bench, fraction).plan
        return _compensated(bench, plan.keep(bench.structure), self.batchnorm)


def compensated(model: nn.Module, structure: Structure, keep: Tensor, grams: Grams) -> nn.Module:
    """A copy of ``model`` in dense coordinates, every consumer rebuilt for ``keep`` (bool ``[units]``)."""
    result = copied(model)
    parameters = dict(result.named_parameters())
    with torch.no_grad():
        for consumer in contractions(structure, keep):
            if consumer.weight in grams:
                weight = parameters[consumer.weight]
                weight.copy_(_absorbed(consumer, weight, grams[consumer.weight]))
    return result


@torch.no_grad()
def input_grams(model: nn.Module, structure: Structure, images: Tensor) -> Grams:
    """``Xᵀ X`` of what each convolution and linear layer without groups reads, over images and positions."""
    everything = torch.ones(structure.units, dtype=torch.bool)
    sums: dict[str, Tensor] = {}
    handles = []
    for consumer in contractions(structure, everything):
        path, _, _ = consumer.weight.rpartition(".")
        module = model.get_submodule(path)
        if consumer.groups == 1 and isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            handles.append(module.register_forward_pre_hook(_adder(sums, consumer.weight)))
    try:
        with eval_mode(model):
            for batch in images.split(16):
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _compensated(bench: Bench, keep: Tensor, batchnorm: bool) -> nn.Module:
    grams = bench.once("grams", lambda: input_grams(bench.model, bench.structure, bench.images))
    pruned = cut(compensated(bench.model, bench.structure, keep, grams), bench.structure, keep)
    return reestimated(pruned, bench.images) if batchnorm else pruned


def _adder(sums: dict[str, Tensor], name: str) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        value = inputs[0].double()
        rows = value.flatten(0, -2) if isinstance(module, nn.Linear) else value.transpose(0, 1).flatten(1).mT
        gram = rows.mT @ rows
        sums[name] = sums[name] + gram if name in sums else gram

    return add


def _absorbed(consumer: Contraction, weight: Tensor, gram: Tensor) -> Tensor:
    """``weight`` with its kept input channels standing in for all."""
    kept, dim = consumer.columns, 0 if consumer.transposed else 1
    inner = gram[kept][:, kept]
    scale = inner.diagonal().mean()
    if len(kept) == len(gram) or not scale > 0:
        return weight
    damped = inner + RIDGE * scale * torch.eye(len(kept), dtype=gram.dtype)
    rebuild = torch.linalg.solve(damped, gram[kept]).mT  # [channels, kept]
    moved = weight.double().movedim(dim, -1) @ rebuild
    result = weight.clone()
    result.movedim(dim, -1)[..., kept] = moved.to(weight)
    return result
