"""The methods that benchmarks compare, in each regime: how each scores units and decides which to remove.

Structure, budget, surgery, training and data are the same for all; see :class:`Method`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from benchmarks.joint import joint_task
from benchmarks.rivals import ConflictTaylor, CosPrune
from benchmarks.stock_scores import Kind, StockScores
from benchmarks.widths import LogWidths, Shuffled
from disparse_structured.decision.arbiters import Arbiter, Majority, WeightedMean
from disparse_structured.decision.deciding import DEFAULT_ARBITER, DEFAULT_RANKING
from disparse_structured.decision.rankings import GlobalRanking, IsomorphicRanking, LayerRanking, Ranking
from disparse_structured.scoring import Criterion
from disparse_structured.scoring.criteria import SNIP, Fisher, Learned, Magnitude, Random, Taylor
from disparse_structured.tasks import Task, check_tasks

RegimeName = Literal["pretrained", "static", "dynamic"]


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    Args:
        name: is unique within its regime.
        criterion, arbiter, ranking: how units are scored, votes decided, and layers compared; by default
            unanimously and per cost.
        joint: whether one task, the weighted sum of all losses, stands for all, so that tasks do not vote.
        stages: how many times to prune, with training in between (not at initialization).
        grow: scores the units to regrow, if not ``criterion`` (dynamic only).
        rewind: whether weights are reset to those before any training, after the decision.
        compensated: whether units are chosen by the damage that is left after compensation, and the remaining
            weights refit, as ``prune`` does by default; otherwise votes decide, and nothing is refit.
        longer: whether the pruned network is trained for as many epochs as the dense one was.
        teacher: the weight of the distillation from the dense network while the pruned one is trained.
        early: the agreement of two epochs' votes at which to prune, instead of at initialization (static
            only).
        source: the paper that the decision is from, and what is different here.
    """

    name: str
    regime: RegimeName
    criterion: Criterion
    arbiter: Arbiter = DEFAULT_ARBITER
    ranking: Ranking = DEFAULT_RANKING
    joint: bool = False
    stages: int = 1
    rewind: bool = False
    grow: Criterion | None = None
    compensated: bool = False
    longer: bool = False
    teacher: float = 0.0
    early: float | None = None
    source: str = ""

    @property
    def key(self) -> str:
        """``regime/name``."""
        return f"{self.regime}/{self.name}"

    def voters(self, tasks: Sequence[Task]) -> tuple[Task, ...]:
        """The tasks to prune for: ``tasks``, or the joint one."""
        return (joint_task(tasks),) if self.joint else check_tasks(tasks)


_DISPARSE = "Sun et al., DiSparse, CVPR 2022, on units"
_ARBITER = "ours: DiSparse's votes, another arbiter"
_IMP = "Han et al., Learning both weights and connections, NIPS 2015, on units"
_LTH = "Frankle, Carbin, The lottery ticket hypothesis, ICLR 2019, on units"
_STOCK = "Fang et al., DepGraph, CVPR 2023 (Torch-Pruning's scores)"
_OWN: tuple[tuple[RegimeName, Criterion], ...] = (("pretrained", Fisher()), ("static", SNIP()))

KINDS: tuple[Kind, ...] = ("magnitude", "taylor", "hessian")
"""Torch-Pruning's importances."""

RANKINGS: Mapping[str, Ranking] = {
    "uniform": LayerRanking(),
    "global": GlobalRanking(),
    "isomorphic": IsomorphicRanking(),
}
"""How Torch-Pruning's pruner lets layers compete."""

_CHANCE = "chance: every method must beat it"

_COMPENSATED = "ours: damage after compensation, its mean over the tasks, and a refit"

_PRETRAINED = (
    Method("compensated", "pretrained", Taylor(), WeightedMean(), compensated=True, source=_COMPENSATED),
    Method(
        "compensated-distilled",
        "pretrained",
        Taylor(),
        WeightedMean(),
        compensated=True,
        teacher=1.0,
        source=f"{_COMPENSATED}; the dense network is a teacher of the fine-tuning",
    ),
    Method(
        "compensated-iterative",
        "pretrained",
        Taylor(),
        WeightedMean(),
        stages=3,
        compensated=True,
        source=f"{_COMPENSATED}, in stages until 0.4 of the fine-tuning",
    ),
    Method(
        "compensated-longer",
        "pretrained",
        Taylor(),
        WeightedMean(),
        compensated=True,
        longer=True,
        source=f"{_COMPENSATED}, and as much training as the lottery ticket",
    ),
    Method("disparse", "pretrained", Fisher(), source=_DISPARSE),
    Method("disparse-majority", "pretrained", Fisher(), Majority(), source=_ARBITER),
    Method("disparse-mean", "pretrained", Fisher(), WeightedMean(), source=_ARBITER),
    Method("disparse-iterative", "pretrained", Fisher(), stages=3, source=_DISPARSE),
    Method("random", "pretrained", Random(), joint=True, source=_CHANCE),
    Method(
        "magnitude-uniform",
        "pretrained",
        Magnitude(),
        ranking=LayerRanking(),
        joint=True,
        source="Li et al., Pruning filters for efficient ConvNets, ICLR 2017",
    ),
    Method("imp", "pretrained", Magnitude(), ranking=LayerRanking(), joint=True, stages=5, source=_IMP),
    Method(
        "lth",
        "pretrained",
        Magnitude(),
        ranking=LayerRanking(),
        joint=True,
        stages=5,
        rewind=True,
        source=_LTH,
    ),
    Method(
        "joint-fisher",
        "pretrained",
        Fisher(),
        joint=True,
        source="ours without the votes: one score for the sum of all losses",
    ),
    Method(
        "adapmtl",
        "pretrained",
        Learned(),
        arbiter=WeightedMean(),
        ranking=GlobalRanking(),
        source="Xiang et al., AdapMTL, ACM MM 2024: learned soft thresholds, here with weights frozen",
    ),
    Method(
        "cosprune",
        "pretrained",
        CosPrune(),
        ranking=GlobalRanking(),
        joint=True,
        source="Garg et al., arXiv 2304.06840, one-shot; heads lose the share that the trunk does",
    ),
    Method(
        "conflict-taylor",
        "pretrained",
        ConflictTaylor(),
        ranking=GlobalRanking(),
        joint=True,
        source="Wang et al., arXiv 2511.05557, after the abstract",
    ),
)

_STOCK_METHODS = tuple(
    Method(
        f"stock-{kind}-{name}", "pretrained", StockScores(kind), ranking=ranking, joint=True, source=_STOCK
    )
    for kind, (name, ranking) in product(KINDS, RANKINGS.items())
)

_STATIC = (
    Method("disparse", "static", SNIP(), source=_DISPARSE),
    Method(
        "snip-joint", "static", SNIP(), joint=True, source="Lee et al., SNIP, ICLR 2019, on gates of units"
    ),
    Method("random", "static", Random(), joint=True, source=_CHANCE),
    Method(
        "magnitude-uniform",
        "static",
        Magnitude(),
        ranking=LayerRanking(),
        joint=True,
        source="magnitude at initialization",
    ),
    Method("disparse-early", "static", Fisher(), early=0.5, source="ours: once the votes agree, see Early"),
)

_DYNAMIC = (
    Method(
        "compensated-gradual",
        "dynamic",
        Taylor(),
        WeightedMean(),
        stages=3,
        compensated=True,
        source=f"{_COMPENSATED}, in stages from 0.2 to 0.5 of the training; the network is whole before that",
    ),
    Method("disparse", "dynamic", Fisher(), source=_DISPARSE),
    Method(
        "rigl-joint",
        "dynamic",
        Magnitude(),
        grow=SNIP(),
        ranking=LayerRanking(),
        joint=True,
        source="Evci et al., RigL, ICML 2020: drops by magnitude, grows by gradient; uniform widths, its "
        "simpler variant, in place of Erdős–Rényi",
    ),
    Method(
        "set-random",
        "dynamic",
        Magnitude(),
        grow=Random(),
        ranking=LayerRanking(),
        joint=True,
        source="Mocanu et al., SET, Nature Communications 2018: drops by magnitude, grows by chance; "
        "uniform widths",
    ),
)

_VARIANTS = (
    *(
        Method(f"disparse-{name}", regime, criterion, ranking=ranking, source=_DISPARSE)
        for regime, criterion in _OWN
        for name, ranking in RANKINGS.items()
    ),
    Method("disparse-mean", "static", SNIP(), WeightedMean(), source=_ARBITER),
    Method("disparse-majority", "static", SNIP(), Majority(), source=_ARBITER),
    Method("disparse-fisher", "static", Fisher(), source=_DISPARSE),
    Method("joint-early", "static", Fisher(), joint=True, early=0.5, source="ours without the votes"),
    Method(
        "disparse-shuffled",
        "static",
        Shuffled(SNIP()),
        source="the widths of static/disparse, units drawn at random within each group",
    ),
    Method("disparse-log", "static", LogWidths(SNIP()), source="ours: widths that maximize a utility"),
    Method(
        "random-uniform",
        "static",
        Random(),
        ranking=LayerRanking(),
        joint=True,
        source="the widths of static/magnitude-uniform, units drawn at random within each group",
    ),
    Method("disparse-taylor", "pretrained", Taylor(), source=_DISPARSE),
)

METHODS: Mapping[str, Method] = {
    method.key: method for method in (*_PRETRAINED, *_STOCK_METHODS, *_STATIC, *_DYNAMIC)
}
"""By :attr:`Method.key`, in the order of the tables."""

VARIANTS: Mapping[str, Method] = {method.key: method for method in _VARIANTS}
"""Variants of our own methods that were tried, and what shows where their results come from."""
