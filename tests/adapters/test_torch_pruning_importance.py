"""Torch-Pruning's pruners remove channels in the order in which the tasks' votes, arbitrated, remove them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from disparse_structured.adapters.torch_pruning import (
    DisparseImportance,
    ImportanceCriterion,
    removal_order,
)
from disparse_structured.decision.arbiters import AnyTask, Quorum, Unanimous, WeightedMean
from disparse_structured.decision.rankings import GlobalRanking, ranking_context
from disparse_structured.decision.votes import normalize, standings
from disparse_structured.errors import PlanError
from disparse_structured.scoring import score
from disparse_structured.scoring.criteria import Fisher
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery._torch_pruning import StructureGraph
from disparse_structured.surgery.module import cut
from disparse_structured.tasks import Task
from tests.support.plans import deviation, snapshot

X = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(3))
TASKS = (Task("depth", "depth"), Task("kind", "kind"))


class TwoHeads(nn.Module):
    """A residual trunk with batch norms, and a head with a hidden layer for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.outer = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 12, 3, padding=1)
        self.depth = nn.Sequential(nn.Conv2d(12, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        self.kind = nn.Sequential(nn.Linear(12 * 4, 9), nn.ReLU(), nn.Linear(9, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = torch.relu(self.norm(self.stem(x)))
        trunk = first + self.outer(torch.relu(self.inner(first)))
        pooled = nn.functional.adaptive_avg_pool2d(trunk, 2).flatten(1)
        return {"depth": self.depth(trunk), "kind": self.kind(pooled)}


def network() -> TwoHeads:
    torch.manual_seed(1)
    return TwoHeads().eval()


@functools.cache
def scored() -> tuple[Structure, Tensor]:
    model = network()
    structure = analyse(model, (X,), TASKS)
    return structure, score(model, structure, [X], Fisher()).scores


def importance_of(model: nn.Module, **options: Any) -> DisparseImportance:
    structure, scores = scored()
    return DisparseImportance(model, structure, scores, **options)


def removed_by(pruner: Any, model: nn.Module) -> Tensor:
    """Bool ``[units]``: what one step of the pruner removes."""
    structure, _ = scored()
    removed = torch.zeros(structure.units, dtype=torch.bool)
    names = {module: name for name, module in model.named_modules()}
    for group in pruner.step(interactive=True):
        root = names[group[0].dep.target.module]
        ours = next(
            each
            for each in structure.groups
            if any((m.parameter, m.dim) == (f"{root}.weight", 0) for m in each.members)
        )
        index = next(m.index for m in ours.members if (m.parameter, m.dim) == (f"{root}.weight", 0))
        removed[ours.slice] |= torch.from_numpy(index[:, 0])[:, None].eq(torch.tensor(group[0].idxs)).any(1)
        group.prune()
    return removed


def places() -> Tensor:
    """float64 ``[tasks, units]``: each task's own ranking of all the units that it reaches."""
    structure, scores = scored()
    context = ranking_context(structure.groups, torch.ones(structure.units, dtype=torch.float64))
    normalized = normalize(scores, structure.reach, structure.tasks)
    return standings(normalized, structure.reach, GlobalRanking(), context)


def heads(model: Any) -> list[nn.Module]:
    return [model.depth[2], model.kind[2]]


# The order.


@pytest.mark.parametrize(
    ("arbiter", "combined"),
    [
        (Unanimous(), lambda found, reach: found.masked_fill(~reach, -1).amax(0)),
        (AnyTask(), lambda found, reach: found.masked_fill(~reach, 2).amin(0)),
        (Quorum(1), lambda found, reach: found.masked_fill(~reach, 2).amin(0)),
    ],
    ids=["unanimous", "any task", "quorum"],
)
def test_a_unit_is_removed_when_as_many_tasks_as_are_needed_give_it_up(
    arbiter: Any, combined: Callable[[Tensor, Tensor], Tensor]
) -> None:
    structure, scores = scored()
    expected = combined(places(), structure.reach)
    order = removal_order(structure, scores, arbiter).argsort()
    assert bool((expected[order].diff() >= 0).all())
    assert len(expected.unique()) > 10


def test_the_mean_of_normalized_scores_decides_where_the_arbiter_is_the_mean() -> None:
    structure, scores = scored()
    normalized = normalize(scores, structure.reach, structure.tasks)
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)[:, None] * structure.reach
    mean = (weights * normalized).sum(0) / weights.sum(0)
    order = removal_order(structure, scores, WeightedMean(), weights=(3.0, 1.0)).argsort()
    assert bool((mean[order].diff() >= 0).all())
    assert len(mean.unique()) > 10


def test_every_unit_has_a_place_of_its_own() -> None:
    structure, scores = scored()
    order = removal_order(structure, scores)
    every = torch.arange(structure.units, dtype=torch.float64) / structure.units
    assert torch.equal(order.sort().values, every)


def test_what_no_task_claims_is_never_removed() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.extra = nn.Linear(4, 6), nn.Linear(4, 5)
            self.out, self.other = nn.Linear(6, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.out(self.body(x).relu()), "other": self.other(self.extra(x).relu())}

    structure = analyse(Apart(), torch.randn(2, 4), (Task("out", "out"),))
    order = removal_order(structure, torch.rand(1, structure.units))
    unclaimed = {group.name: order[group.slice] for group in structure.groups}
    assert bool(unclaimed["extra"].isinf().all())
    assert bool(unclaimed["body"].isfinite().all())


# Torch-Pruning's pruners.


@pytest.mark.parametrize(
    "pruner", [tp.pruner.BasePruner, tp.pruner.MagnitudePruner, tp.pruner.GroupNormPruner]
)
@pytest.mark.parametrize("arbiter", [Unanimous(), WeightedMean()], ids=str)
def test_globally_the_first_units_of_our_order_are_removed(pruner: Any, arbiter: Any) -> None:
    model = network()
    importance = importance_of(model, arbiter=arbiter)
    made = pruner(
        model, X, importance=importance, global_pruning=True, pruning_ratio=0.4, ignored_layers=heads(model)
    )
    removed = removed_by(made, model)
    assert 10 < int(removed.sum()) < 25
    assert torch.equal(removed, importance.order.argsort().argsort() < removed.sum())


def test_layer_by_layer_the_first_of_each_layer_are_removed() -> None:
    model = network()
    importance = importance_of(model)
    removed = removed_by(
        tp.pruner.BasePruner(model, X, importance=importance, pruning_ratio=0.5, ignored_layers=heads(model)),
        model,
    )
    for group in scored()[0].groups:
        own = importance.order[group.slice]
        assert torch.equal(removed[group.slice], own.argsort().argsort() < (group.units + 1) // 2)


def test_the_pruned_network_computes_what_ours_does_with_the_same_units() -> None:
    model = network()
    importance = importance_of(model)
    removed = removed_by(
        tp.pruner.BasePruner(
            model,
            X,
            importance=importance,
            global_pruning=True,
            pruning_ratio=0.4,
            ignored_layers=heads(model),
        ),
        model,
    )
    ours = cut(network(), scored()[0], ~removed)
    with torch.no_grad():
        assert deviation(model(X), ours(X)) <= 1e-5


def test_outputs_are_left_whole_without_being_ignored() -> None:
    model = network()
    pruner = tp.pruner.BasePruner(model, X, importance=importance_of(model), pruning_ratio=0.5)
    pruner.step()
    assert (model.depth[2].out_channels, model.kind[2].out_features) == (1, 4)
    assert model.stem.out_channels == 6


def test_a_group_of_our_own_graph_gets_the_order_of_its_units() -> None:
    model = network()
    importance = importance_of(model)
    structure, _ = scored()
    for group, ours in zip(StructureGraph(model, structure).get_all_groups(), structure.groups, strict=True):
        found = importance(group)
        assert found is not None
        assert torch.equal(found, importance.order[ours.slice])


def test_the_second_step_of_a_pruner_is_refused() -> None:
    model = network()
    pruner = tp.pruner.BasePruner(
        model, X, importance=importance_of(model), iterative_steps=2, ignored_layers=heads(model)
    )
    pruner.step()
    with pytest.raises(PlanError, match=r"weight' has \d+ positions, and had \d+ .* Use iterative_steps=1"):
        pruner.step()


def test_another_model_is_refused() -> None:
    model = network()
    pruner = tp.pruner.BasePruner(network(), X, importance=importance_of(model))
    with pytest.raises(PlanError, match=r"is not a module of the scored model\. Give"):
        pruner.step()


# The other way round.


def test_an_importance_is_a_criterion() -> None:
    model = network()
    structure, _ = scored()
    before = snapshot(model)
    found = score(
        model, structure, criterion=ImportanceCriterion(tp.importance.GroupMagnitudeImportance())
    ).scores
    graph = tp.DependencyGraph().build_dependency(model, (X,), verbose=False)
    importance = tp.importance.GroupMagnitudeImportance()
    for root in ("inner", "depth.0"):
        layer = model.get_submodule(root)
        expected = importance(
            graph.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(layer.out_channels)))
        )
        group = next(
            each
            for each in structure.groups
            if any((m.parameter, m.dim) == (f"{root}.weight", 0) for m in each.members)
        )
        rows = found[structure.reach.any(1)][:, group.slice].amax(0)
        torch.testing.assert_close(rows.float(), expected.float(), rtol=1e-5, atol=0)
    assert snapshot(model) == before


def test_a_criterion_from_an_importance_that_reads_gradients_needs_data() -> None:
    model = network()
    structure, _ = scored()
    criterion = ImportanceCriterion(tp.importance.GroupTaylorImportance(), "sum")
    found = score(model, structure, [X, X[:2]], criterion)
    assert (found.batches, found.samples) == (2, 6)
    assert bool((found.scores.amax(0) > 0).any())
