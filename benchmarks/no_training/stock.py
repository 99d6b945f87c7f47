"""Torch-Pruning without us, on the best terms we can give it: our exact budget, and what it does alone."""

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
    """Torch-Pruning's own importances, ranked as its pruner ranks them, at exactly the MACs asked for.

    Args:
        kind: the importance; Taylor's and Hessian's take labels.
        ranking: uniform, global or isomorphic.
        batchnorm: take the statistics of batch norms anew from the images.
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
    """Torch-Pruning's pruner itself, by group magnitude; its ratio is searched for the MACs.

    Args:
        over_all_layers: whether layers compete.
        batchnorm: take the statistics of batch norms anew from the images.
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
            # It says of every layer scale, at every trial, along which dimension it cuts it.
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
