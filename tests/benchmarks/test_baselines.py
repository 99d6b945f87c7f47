"""The methods of the tables: each gives a plan within its budget; stock and rival scores against oracles."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from benchmarks.baselines import METHODS, Method
from benchmarks.joint import joint_task
from benchmarks.rivals import ConflictTaylor, CosPrune, FilterGradients
from benchmarks.stock_scores import Kind, StockScores
from benchmarks.widths import LogWidths, Shuffled
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import TOLERANCE, make_plan
from disparse_structured.decision.plan import Plan
from disparse_structured.decision.rankings import GlobalRanking
from disparse_structured.errors import BatchError, TaskError
from disparse_structured.scoring import Criterion, score
from disparse_structured.scoring.criteria import SNIP
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Task
from tests.support.plans import snapshot

Batch = Mapping[str, Tensor]


class TwoHeads(nn.Module):
    """A trunk with a residual block, and a head of two layers for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.outer = nn.Conv2d(16, 12, 3, padding=1)
        self.depth = nn.Sequential(nn.Conv2d(12, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        self.kind = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10), nn.ReLU())
        self.logits = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.stem(x)
        trunk = first + self.outer(self.inner(first))
        return {"depth": self.depth(trunk), "kind": self.logits(self.kind(trunk))}


TASKS = (
    Task("depth", "depth", lambda output, batch: (output - batch["depth"]).abs().mean(), weight=2.0),
    Task("kind", "kind", lambda output, batch: nn.functional.cross_entropy(output, batch["kind"])),
)


@dataclass(frozen=True, eq=False)
class Case:
    model: nn.Module
    inputs: tuple[Tensor, ...]
    data: tuple[Batch, ...]

    def structure(self, tasks: tuple[Task, ...] = TASKS) -> Structure:
        return analyzed(self, tasks)

    def scores(self, criterion: Criterion, tasks: tuple[Task, ...] = TASKS, **options: Any) -> Tensor:
        return score(self.model, self.structure(tasks), self.data, criterion, **options).scores


@functools.cache
def analyzed(case: Case, tasks: tuple[Task, ...]) -> Structure:
    """The same structure each time: it does not depend on the method."""
    return analyse(case.model, case.inputs, tasks)


@functools.cache
def case() -> Case:
    """The same network and data each time; never to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = TwoHeads().eval()
        data = tuple(
            {
                "x": torch.randn(3, 3, 8, 8),
                "depth": torch.randn(3, 1, 8, 8),
                "kind": torch.randint(4, (3,)),
            }
            for _ in range(3)
        )
    return Case(model, (data[0]["x"],), data)


def brief(method: Method) -> Method:
    """Fewer steps of learning than in the tables."""
    return (
        replace(method, criterion=replace(method.criterion, steps=12)) if "adapmtl" in method.key else method
    )


def plan_of(method: Method, seed: int = 0) -> tuple[Structure, Plan]:
    structure = case().structure(method.voters(TASKS))
    scores = score(case().model, structure, case().data, method.criterion, seed=seed).scores
    plan = make_plan(
        structure, scores, Budget(macs=0.5, round_to=1), ranking=method.ranking, arbiter=method.arbiter
    )
    return structure, plan


# The table.


def test_the_table_has_the_methods_in_each_regime_under_their_keys() -> None:
    assert all(key == f"{method.regime}/{method.name}" for key, method in METHODS.items())
    names = {
        regime: [method.name for method in METHODS.values() if method.regime == regime]
        for regime in ("pretrained", "static", "dynamic")
    }
    assert {"disparse", "random"} <= set(names["static"]) & set(names["pretrained"])
    assert "rigl-joint" in names["dynamic"]
    assert sum(name.startswith("stock-") for name in names["pretrained"]) == 9
    assert all(method.source for method in METHODS.values())


@pytest.mark.parametrize("key", METHODS)
def test_every_method_gives_a_plan_within_its_budget_and_the_same_again(key: str) -> None:
    method = brief(METHODS[key])
    before = snapshot(case().model)
    structure, plan = plan_of(method)
    keep = plan.keep(structure)
    cost = structure.cost.macs.total(keep) / structure.cost.macs.dense

    assert 0.5 - 2 * TOLERANCE <= cost <= 0.5  # of 46 units, one is more than TOLERANCE
    assert structure.tasks == (("joint",) if method.joint else ("depth", "kind"))
    assert torch.equal(plan_of(method)[1].keep(structure), keep)
    assert snapshot(case().model) == before
    pruned = apply(case().model, plan, structure).model
    assert {name: out.shape for name, out in pruned(*case().inputs).items()} == {
        "depth": (3, 1, 8, 8),
        "kind": (3, 4),
    }


def test_methods_differ_in_what_they_decide() -> None:
    names = "disparse random magnitude-uniform joint-fisher adapmtl cosprune conflict-taylor".split()
    names += ["stock-magnitude-global", "stock-taylor-global", "stock-taylor-uniform"]
    masks = {}
    for name in names:
        structure, plan = plan_of(brief(METHODS[f"pretrained/{name}"]))
        masks[name] = tuple(plan.keep(structure).tolist())
    assert len(set(masks.values())) == len(names), masks


def test_shuffled_scores_give_the_same_widths_and_other_units() -> None:
    structure = case().structure()
    plain, shuffled = (case().scores(criterion) for criterion in (SNIP(), Shuffled(SNIP())))
    kept = [make_plan(structure, scores, Budget(macs=0.5, round_to=1)) for scores in (plain, shuffled)]
    one, other = (plan.keep(structure) for plan in kept)

    assert not torch.equal(one, other)
    for group in structure.groups:
        assert one[group.slice].sum() == other[group.slice].sum()
        assert sorted(map(tuple, plain[:, group.slice].T.tolist())) == sorted(
            map(tuple, shuffled[:, group.slice].T.tolist())
        )
    assert torch.equal(case().scores(Shuffled(SNIP())), shuffled)
    assert not torch.equal(case().scores(Shuffled(SNIP()), seed=1), shuffled)


def test_log_widths_have_the_largest_utility_that_their_cost_allows() -> None:
    """Where every unit costs the same, no exchange of a unit between two groups is better for the task."""
    structure = case().structure((TASKS[0],))
    plain, found = (case().scores(criterion, (TASKS[0],)) for criterion in (SNIP(), LogWidths(SNIP())))
    budget = Budget(macs=0.5, round_to=1, floor=0.0)
    keep = make_plan(structure, found, budget, ranking=GlobalRanking()).keep(structure)
    groups = [group for group in structure.groups if group.reach]
    shares = [float(plain[0, group.slice].sum()) for group in groups]
    widths = [int(keep[group.slice].sum()) for group in groups]

    def utility(widths: list[int]) -> float:
        return sum(share * math.log(width) for share, width in zip(shares, widths, strict=True))

    for more, fewer in permutations(range(len(groups)), 2):
        if widths[more] < groups[more].units and widths[fewer] > 1:
            other = [w + (g == more) - (g == fewer) for g, w in enumerate(widths)]
            assert utility(other) <= utility(widths)


# The joint task.


def test_the_joint_loss_is_the_weighted_sum() -> None:
    joint = joint_task(TASKS)
    output = case().model(case().inputs[0])
    batch = case().data[0]
    depth, kind = (task.loss(task.pick(output), batch) for task in TASKS if task.loss)
    assert joint.loss is not None
    torch.testing.assert_close(joint.loss(joint.pick(output), batch), 2 * depth + kind)


def test_joint_snip_is_the_snip_of_the_weighted_sum() -> None:
    """Signed gradients add up: with losses of opposite sign nothing is left."""

    def negative(output: Tensor, batch: Batch) -> Tensor:
        return -(output - batch["depth"]).abs().mean()

    opposed = (TASKS[0], Task("minus", "depth", negative, weight=2.0))
    assert case().scores(SNIP(), opposed).max() > 1e-6
    with pytest.raises(TaskError, match="every score by SNIP"):
        case().scores(SNIP(), (joint_task(opposed),))


def test_a_task_without_a_loss_has_no_part_in_a_joint_one() -> None:
    with pytest.raises(TaskError, match="task 'kind' has no loss, and this method needs one"):
        joint_task((TASKS[0], replace(TASKS[1], loss=None)))
    unlabeled = (TASKS[0], replace(TASKS[1], loss=None))
    with pytest.raises(TaskError, match="task 'kind' has no loss"):
        case().scores(CosPrune(), unlabeled)
    with pytest.raises(BatchError, match="needs data"):
        score(case().model, case().structure(), criterion=StockScores("taylor"))


# Stock scores.


class Plain(nn.Module):
    """No coupled layers: Torch-Pruning's groups, and ours, are a layer's outputs and who reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.b, self.nb = nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)
        self.c = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.nb(self.b(self.na(self.a(x)).relu())).relu())


def plain_loss(output: Tensor, batch: Tensor) -> Tensor:
    return output.exp().mean()


@pytest.mark.parametrize("kind", ["magnitude", "taylor", "hessian"])
def test_stock_scores_are_those_of_torch_pruning(kind: Kind) -> None:
    torch.manual_seed(0)
    model = Plain().eval()
    data = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)]
    structure = analyse(model, (data[0],), (Task("only", lambda output: output, plain_loss),))
    found = score(model, structure, data, StockScores(kind)).scores[0]

    graph = tp.DependencyGraph().build_dependency(model, (data[0],), verbose=False)
    samples = [x[n : n + 1] for x in data for n in range(2)] if kind == "hessian" else data
    slopes = [torch.autograd.grad(plain_loss(model(x), x), list(model.parameters())) for x in samples]
    for parameter, found_slopes in zip(model.parameters(), zip(*slopes, strict=True), strict=True):
        stacked = torch.stack(found_slopes)
        parameter.grad = stacked.square().mean(0) if kind == "hessian" else stacked.sum(0)
    importance = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "taylor": tp.importance.GroupTaylorImportance,
        "hessian": tp.importance.GroupHessianImportance,
    }[kind]()
    for layer, group in zip((model.a, model.b), structure.groups, strict=True):
        everything = list(range(layer.out_channels))
        expected = importance(graph.get_pruning_group(layer, tp.prune_conv_out_channels, everything))
        torch.testing.assert_close(found[group.slice].float(), expected.float(), rtol=1e-5, atol=0)


def test_stock_scores_of_several_tasks_are_of_their_weighted_sum() -> None:
    for kind in ("taylor", "hessian"):
        apart = case().scores(StockScores(kind))
        joint = case().scores(StockScores(kind), (joint_task(TASKS),))
        torch.testing.assert_close(apart.amax(0), joint[0])


# Rivals.


class Shared(nn.Module):
    """Three units that two tasks read with the weights given: unit u adds ``weights[task][u] * h[u]``."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 3, bias=False)
        self.left, self.right = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]]))
            self.left.weight.copy_(weights[:1])
            self.right.weight.copy_(weights[1:])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(x)
        return {"left": self.left(hidden), "right": self.right(hidden)}


def mean(output: Tensor, batch: Tensor) -> Tensor:
    return output.mean()


PAIR = (Task("left", "left", mean), Task("right", "right", mean))


def rival(criterion: Criterion, weights: list[list[float]], data: list[Tensor]) -> Tensor:
    model = Shared(torch.tensor(weights)).eval()
    structure = analyse(model, (data[0],), PAIR)
    return score(model, structure, data, criterion).scores


X = torch.tensor([[1.0, 3.0]])


def test_cosprune_by_hand() -> None:
    """The gradient of unit u's filter is ``weight * x``: tasks agree on unit 0, conflict on unit 1, and
    unit 2 has no gradient of the right task, whose cosine counts as 0."""
    found = rival(CosPrune(), [[1.0, 1.0, 1.0], [2.0, -1.0, 0.0]], [X, X])
    torch.testing.assert_close(found[0, :2], torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert torch.equal(found[0], found[1])


def test_cosines_of_three_tasks_are_of_all_their_pairs() -> None:
    gradients = torch.tensor([[3.0, 4.0], [4.0, 3.0], [-3.0, -4.0]], dtype=torch.float64)
    found = FilterGradients((gradients @ gradients.T)[..., None], torch.zeros(3, 1))
    cosines, exist = found.cosines()
    expected = torch.tensor([[24 / 25], [-1.0], [-24 / 25]], dtype=torch.float64)
    torch.testing.assert_close(cosines, expected)
    assert exist.all()


def test_cosprune_gives_heads_the_scores_of_the_trunk_at_the_same_ranks() -> None:
    structure = case().structure()
    found = case().scores(CosPrune()).amax(0)
    shared = structure.reach.all(0)
    assert set(found[~shared].tolist()) <= set(found[shared].tolist())
    for share in (0.25, 0.5, 0.75):
        limit = found[shared].quantile(share)
        assert float((found[~shared] < limit).double().mean()) == pytest.approx(share, abs=0.15)


def test_conflict_taylor_by_hand() -> None:
    """``<w, g>`` is weight * hidden; the sums are 7 + 5 + 4 for each task; unit 1 is in full conflict."""
    weights = [[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]
    for penalty in (0.0, 0.5, 1.0):
        found = rival(ConflictTaylor(penalty), weights, [X])[0]
        expected = torch.tensor([7.0, 5.0 * (1 - penalty), 4.0], dtype=torch.float64) / 16
        torch.testing.assert_close(found, expected)


def test_conflict_taylor_keeps_what_one_task_needs() -> None:
    found = rival(ConflictTaylor(), [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [X])[0]
    torch.testing.assert_close(found, torch.tensor([7 / 12, 5 / 12, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("criterion", [CosPrune(), ConflictTaylor()], ids=str)
def test_a_louder_loss_changes_no_rival(criterion: Criterion) -> None:
    quiet = case().scores(criterion)
    loud = (TASKS[0], replace(TASKS[1], loss=lambda output, batch: 64 * TASKS[1].loss(output, batch)))
    shared = case().structure().reach.all(0)  # CosPrune ranks the heads by the sum of the losses
    torch.testing.assert_close(case().scores(criterion, loud)[:, shared], quiet[:, shared])


def test_a_penalty_is_a_share() -> None:
    with pytest.raises(ValueError, match="penalty=2"):
        ConflictTaylor(2)
