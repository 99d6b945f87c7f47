"""Torch-Pruning's choices at our exact budget, which is the best we can do for it, and its own pruner."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass

from torch import nn

from benchmarks import stock
from benchmarks.no_training.bench import Bench, reestimated
from benchmarks.no_training.networks import predictors
from benchmarks.stock_scores import Kind, StockScores
from disparse_structured.decision.rankings import LayerRanking, Ranking
from disparse_structured.scoring.criteria import Random
from disparse_structured.surgery.module import cut


@dataclass(frozen=True)
class Scored:
    """Torch-Pruning's own importances, ranked as its pruner ranks them, at exactly the requested MACs.

    Args:
        kind: the importance; Taylor's and Hessian's need labels.
        ranking: uniform, global or isomorphic.
        batchnorm: re-estimate the statistics of batch norms from the images.
    """

    kind: Kind
    ranking: Ranking
    batchnorm: bool = False

    def __call__(self, bench: Bench, fraction: float) -> nn.Module:
        """The pruned network."""
        keep = bench.keep(StockScores(self.kind), self.ranking, fraction)
        pruned = cut(bench.model, bench.structure, keep)
        return reestimated(pruned, bench.images) if self.batchnorm else pruned


@dataclass(frozen=True)
class Pruner:
    """Torch-Pruning's own pruner by group magnitude, at the ratio that meets the MACs.

    Args:
        over_all_layers: whether layers compete.
        batchnorm: re-estimate the statistics of batch norms from the images.
    """

    over_all_layers: bool
    batchnorm: bool = False

    def __call__(self, bench: Bench, fraction: float) -> nn.Module:
        """The pruned network."""
        pruned = deepcopy(
            bench.once(("pruner", self.over_all_layers, fraction), lambda: self._run(bench, fraction))
        )
        return reestimated(pruned, bench.images) if self.batchnorm else pruned

    def _run(self, bench: Bench, fraction: float) -> nn.Module:
        inputs, heads = bench.model.example_inputs(1), predictors(bench.model)
        with warnings.catch_warnings():
            # In every trial it names the dimension along which it cuts each layer scale.
            warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
            return stock.magnitude(bench.model, inputs, heads, fraction, over_all_layers=self.over_all_layers)


@dataclass(frozen=True)
class Chance:
    """Random units at uniform widths."""

    batchnorm: bool = False

    def __call__(self, bench: Bench, fraction: float) -> nn.Module:
        """The pruned network."""
        pruned = cut(bench.model, bench.structure, bench.keep(Random(), LayerRanking(), fraction))
        return reestimated(pruned, bench.images) if self.batchnorm else pruned
