"""The methods of the benchmark: every way from a trained network and some images to a smaller network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Protocol

from torch import nn

from benchmarks.baselines import KINDS, RANKINGS
from benchmarks.no_training.bench import Bench
from benchmarks.no_training.compensation import Grail, GrailOnOurs
from benchmarks.no_training.folding import Folding
from benchmarks.no_training.ours import Ours
from benchmarks.no_training.stock import Chance, Pruner, Scored
from disparse_structured.decision.arbiters import (
    AnyTask,
    Majority,
    Minimax,
    Priority,
    Unanimous,
    WeightedMean,
)
from disparse_structured.decision.rankings import GlobalRanking, IsomorphicRanking, LayerRanking
from disparse_structured.pipeline import Compensated, DiSparse
from disparse_structured.refit import Affine, BatchNormStatistics, LeastSquares, ModelFolding
from disparse_structured.scoring.criteria import Fisher, Magnitude, Random, Taylor

FRACTIONS = (0.8, 0.65, 0.5, 0.4, 0.3)
"""The shares of the dense MACs that are kept."""

FEW = (0.5, 0.3)
"""The shares at which numbers of images are compared."""

ABLATED = 0.3
"""The share of the ablation: the smallest one, where every part matters most."""

Family = Literal["chance", "stock", "grail", "hybrid", "folding", "ours", "ablation"]


class Pruning(Protocol):
    """A frozen dataclass, whose representation is its settings."""

    def __call__(self, bench: Bench, fraction: float) -> nn.Module:
        """A pruned copy of ``bench.model`` with about ``fraction`` of its MACs."""
        ...


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        name: is unique.
        family: the methods that it is grouped with.
        prune: prunes a network.
        labels: whether it sees the labels of the images.
        fractions: the shares of the MACs at which it is run.
        source: the publication it is from.
    """

    name: str
    family: Family
    prune: Pruning
    labels: bool = False
    fractions: tuple[float, ...] = FRACTIONS
    source: str = ""


_STOCK = "Fang et al., DepGraph, CVPR 2023: Torch-Pruning's scores at our exact budget"
_PRUNER = "Torch-Pruning's pruner itself, which shows that the rows above are fair to it"
_GRAIL = "Tang et al., GRAIL, PMLR 328, 2026"
_FOLDING = "Wang et al., Just fold the network to compress, ICLR 2025"
_OWN = "disparse_structured.prune"


def _suffix(batchnorm: bool) -> str:
    return "+bn" if batchnorm else ""


_CHANCE = tuple(
    Method(f"random{_suffix(bn)}", "chance", Chance(bn), source="random units, uniform widths")
    for bn in (False, True)
)
_SCORED = tuple(
    Method(
        f"{kind}-{name}{_suffix(bn)}",
        "stock",
        Scored(kind, ranking, bn),
        labels=kind != "magnitude",
        source=_STOCK,
    )
    for kind, (name, ranking), bn in product(KINDS, RANKINGS.items(), (False, True))
)
_PRUNERS = tuple(
    Method(
        f"pruner-{name}{_suffix(bn)}", "stock", Pruner(everywhere, bn), fractions=(0.65, 0.5), source=_PRUNER
    )
    for (name, everywhere), bn in product({"uniform": False, "global": True}.items(), (False, True))
)
_RIVALS = (
    *(
        Method(
            f"grail-magnitude{_suffix(bn)}",
            "grail",
            Grail(Magnitude(), LayerRanking(), bn),
            source=f"{_GRAIL}, on magnitude pruning at uniform widths",
        )
        for bn in (False, True)
    ),
    *(
        Method(
            f"grail-ours{_suffix(bn)}",
            "hybrid",
            GrailOnOurs(Ours.but(), bn),
            source=f"{_GRAIL}, on the units that ours removes",
        )
        for bn in (False, True)
    ),
    Method("folding", "folding", Folding(repair=False), source=_FOLDING),
    Method("folding+bn", "folding", Folding(), source=f"{_FOLDING}, with its repair on data"),
)
_OURS = (Method("ours", "ours", Ours.but(), source=_OWN),)


def _but(batchnorm: bool = False, **options: Any) -> Ours:
    """Without verification, which does not change the result and takes a third of the time."""
    return Ours.but(batchnorm, verify=False, **options)


_ABLATION: Mapping[str, Ours] = {
    "no refit": _but(refit=None),
    "affine instead of refit": _but(refit=Affine()),
    "batch norms instead of refit": _but(refit=BatchNormStatistics()),
    "folding instead of refit": _but(refit=ModelFolding()),
    "batch norms after refit": _but(batchnorm=True),
    "refit without shifts": _but(refit=LeastSquares(shifts=0)),
    "refit without streams": _but(refit=LeastSquares(streams=False)),
    "refit with merging": _but(refit=LeastSquares(merge=True)),
    "uniform widths": _but(method=Compensated(ranking=LayerRanking())),
    "global, not per cost": _but(method=Compensated(ranking=GlobalRanking())),
    "isomorphic, not per cost": _but(method=Compensated(ranking=IsomorphicRanking())),
    "one round": _but(method=Compensated(rounds=1)),
    "ordered by Fisher": _but(method=Compensated(Fisher())),
    "units by Taylor at once": _but(method=DiSparse(Taylor(), WeightedMean())),
    "units by Fisher at once": _but(method=DiSparse(Fisher(), WeightedMean())),
    "units by magnitude": _but(method=DiSparse(Magnitude(), WeightedMean())),
    "units by chance": _but(method=DiSparse(Random(), WeightedMean(), LayerRanking())),
    "arbiter: unanimous": _but(method=Compensated(arbiter=Unanimous())),
    "arbiter: majority": _but(method=Compensated(arbiter=Majority())),
    "arbiter: sum of damage": _but(method=Compensated(arbiter=Priority())),
    "arbiter: any task": _but(method=Compensated(arbiter=AnyTask())),
    "arbiter: minimax": _but(method=Compensated(arbiter=Minimax())),
}
"""What is different, and the call that differs in that way."""

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        *_CHANCE,
        *_SCORED,
        *_PRUNERS,
        *_RIVALS,
        *_OURS,
        *(
            Method(name, "ablation", prune, fractions=(ABLATED,), source=_OWN)
            for name, prune in _ABLATION.items()
        ),
    )
}
"""By name, in the order of the tables."""
