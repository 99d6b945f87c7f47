"""Torch-Pruning's own interface on our groups: listing, asking, checking, scoring, cutting, history."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch_pruning as tp
from torch import Tensor, nn

from disparse_structured.errors import PlanError
from disparse_structured.structure import analyse
from disparse_structured.surgery._torch_pruning import StructureGraph
from disparse_structured.tasks import Task
from tests.support.plans import Case, case, deviation, random_keep
from tests.support.zoo import ids, randomize_norms


def graph_of(animal: Case) -> StructureGraph:
    return StructureGraph(copy.deepcopy(animal.model), animal.structure)


def same_tensors(one: nn.Module, other: nn.Module) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def root_positions(group: Any, gone: set[int]) -> list[int]:
    """The positions of the group's root that belong to its units number ``gone``."""
    root = group[0]
    return [index for index, unit in zip(root.idxs, root.root_idxs, strict=True) if unit in gone]


# Groups.


@pytest.mark.parametrize("id", ids)
def test_all_groups_are_the_channel_groups(id: str) -> None:
    animal = case(id)
    graph = graph_of(animal)
    groups = list(graph.get_all_groups())

    assert len(groups) == len(animal.structure.groups)
    names = {module: name for name, module in graph.model.named_modules()}
    for found, expected in zip(groups, animal.structure.groups, strict=True):
        assert {unit for item in found for unit in item.root_idxs} == set(range(expected.units))
        assert all(len(item.idxs) == len(item.root_idxs) for item in found)
        touched = {names[item.dep.target.module] for item in found}
        assert {member.parameter.rpartition(".")[0] for member in expected.members} <= touched
        assert graph.check_pruning_group(found) is False
    assert {parameter.shape for parameter in graph.model.parameters()} == {
        parameter.shape for parameter in animal.model.parameters()
    }


@pytest.mark.parametrize("id", ids)
def test_pruning_each_group_in_turn_is_cutting_at_once(id: str) -> None:
    animal = case(id)
    keep = random_keep(animal.structure, 0)
    graph = graph_of(animal)
    for group, expected in zip(graph.get_all_groups(), animal.structure.groups, strict=True):
        gone = np.flatnonzero(~keep[expected.slice].numpy())
        group.prune(root_positions(group, set(gone.tolist())))

    same_tensors(graph.model, animal.pruned(keep))
    with torch.no_grad():
        graph.model(*animal.inputs)


@pytest.mark.parametrize(
    "id", ["plain", "unequal-split", "tiny-vit", "heads-bound-to-width", "channel-shuffle"]
)
def test_pruning_twice_is_pruning_once(id: str) -> None:
    """Indices are those of the model as it is: the second round asks for what the first one left."""
    animal = case(id)
    first, second = random_keep(animal.structure, 0, 0.8), random_keep(animal.structure, 1, 0.8)
    both = first & second
    if any(not both[group.slice].any() for group in animal.structure.groups):
        both = first
    graph = graph_of(animal)
    graph.units_group(np.flatnonzero(~first.numpy())).prune()
    rest = np.flatnonzero((first & ~both).numpy())
    if len(rest):
        graph.units_group(rest).prune()

    same_tensors(graph.model, animal.pruned(both))


def test_ignored_layers_and_root_types_select_groups() -> None:
    graph = graph_of(case("fused-qkv"))
    qkv = graph.model.trunk[1].qkv

    every = len(list(graph.get_all_groups()))
    kept = list(graph.get_all_groups(ignored_layers=[graph.model.trunk[1].proj]))
    assert len(kept) == every - 1  # its outputs are the width; the heads are only its inputs
    kept = list(graph.get_all_groups(ignored_layers=[qkv]))
    assert len(kept) == every - 1
    assert not any(item.dep.target.module is qkv and item.idxs for group in kept for item in group[:1])
    assert list(graph.get_all_groups(root_module_types=[nn.Conv2d])) == []


def test_asking_for_some_channels_gives_all_that_are_removed_with_them() -> None:
    animal = case("plain")
    graph = graph_of(animal)
    first, norm, second = graph.model.trunk[0][0], graph.model.trunk[0][1], graph.model.trunk[1][0]
    asked = [
        graph.get_pruning_group(first, tp.prune_conv_out_channels, [1, 3]),
        graph.get_pruning_group(norm, tp.prune_batchnorm_out_channels, [3, 1]),
        graph.get_pruning_group(second, tp.prune_conv_in_channels, [1, 3]),
    ]
    cuts = [
        sorted((item.dep.handler.__name__, graph._module2name[item.dep.target.module], tuple(item.idxs))
               for item in group)
        for group in asked
    ]  # fmt: skip

    assert cuts[0] == [
        ("prune_in_channels", "trunk.1.0", (1, 3)),
        ("prune_out_channels", "trunk.0.0", (1, 3)),
        ("prune_out_channels", "trunk.0.1", (1, 3)),
    ]
    assert cuts[0] == cuts[1] == cuts[2]

    asked[0].prune()
    keep = torch.ones(animal.structure.units, dtype=torch.bool)
    keep[[1, 3]] = False
    same_tensors(graph.model, animal.pruned(keep))
    assert deviation(animal.outputs(graph.model), animal.twin(keep)) <= 1e-9


@pytest.mark.parametrize(
    ("id", "layer", "function", "index", "width"),
    [
        ("fused-qkv", "trunk.1.qkv", tp.prune_linear_out_channels, 5, 36 - 9),  # one head: q, k and v, 3 wide
        ("depthwise-separable", "trunk.1.0", tp.prune_depthwise_conv_out_channels, 2, 7),
        ("depthwise-separable", "trunk.1.0", tp.prune_conv_out_channels, 2, 7),
        ("grouped", "trunk.0.0", tp.prune_conv_out_channels, 4, 8),  # one of each of the four groups
        ("grouped", "trunk.1.0", tp.prune_conv_in_channels, 4, 16),
        ("convnext-block", "trunk.norm", tp.prune_layernorm_out_channels, 6, 7),
        ("prelu-each-channel", "trunk.2", tp.prune_prelu_out_channels, 0, 11),
    ],
)
def test_one_index_takes_its_unit(id: str, layer: str, function: Any, index: int, width: int) -> None:
    animal = case(id)
    graph = graph_of(animal)
    module = graph.model.get_submodule(layer)

    graph.get_pruning_group(module, function, [index]).prune()

    assert module.weight.shape[0] == width
    with torch.no_grad():
        graph.model(*animal.inputs)


def test_what_cannot_be_pruned_is_refused_by_name() -> None:
    graph = graph_of(case("plain"))
    stem, head = graph.model.trunk[0][0], graph.model.kind

    with pytest.raises(
        ValueError, match=r"positions \[0, 2\] of 'trunk\.0\.0' cannot be pruned: they are pinned"
    ):
        graph.get_pruning_group(stem, tp.prune_conv_in_channels, [0, 2])
    with pytest.raises(ValueError, match=r"positions \[8\] of 'trunk\.0\.0' cannot be pruned.*out of range"):
        graph.get_pruning_group(stem, tp.prune_conv_out_channels, [7, 8])
    with pytest.raises(ValueError, match=r"positions \[-1\] of 'trunk\.0\.0'"):
        graph.get_pruning_group(stem, tp.prune_conv_out_channels, [-1])
    with pytest.raises(ValueError, match=r"positions \[0\] of 'kind' cannot be pruned"):
        graph.get_pruning_group(head, tp.prune_linear_out_channels, [0])
    with pytest.raises(ValueError, match=r"module 'trunk\.0\.2' owns nothing that can be pruned"):
        graph.get_pruning_group(graph.model.trunk[0][2], tp.prune_conv_out_channels, [0])


def test_a_group_that_would_be_emptied_fails_the_check() -> None:
    graph = graph_of(case("plain"))
    stem = graph.model.trunk[0][0]

    assert graph.check_pruning_group(graph.get_pruning_group(stem, tp.prune_conv_out_channels, range(7)))
    assert not graph.check_pruning_group(graph.get_pruning_group(stem, tp.prune_conv_out_channels, range(8)))
    graph.get_pruning_group(stem, tp.prune_conv_out_channels, range(6)).prune()
    assert graph.check_pruning_group(graph.get_pruning_group(stem, tp.prune_conv_out_channels, [1]))
    assert not graph.check_pruning_group(graph.get_pruning_group(stem, tp.prune_conv_out_channels, [0, 1]))


@pytest.mark.parametrize("some", [None, [0]])
def test_a_group_made_before_another_was_cut_is_refused(some: list[int] | None) -> None:
    graph = graph_of(case("unequal-split"))
    first, second, *_ = graph.get_all_groups()
    first.prune(root_positions(first, {0}))
    shapes = [parameter.shape for parameter in graph.model.parameters()]

    for stale in (first, second):
        with pytest.raises(
            PlanError, match=r"pruned after this group was made\. Ask the graph for the group again"
        ):
            stale.prune(some)
    assert [parameter.shape for parameter in graph.model.parameters()] == shapes


# History.


@pytest.mark.parametrize("id", ids)
def test_history_replays(id: str) -> None:
    animal = case(id)
    keep = random_keep(animal.structure, 0)
    graph = graph_of(animal)
    for group, expected in zip(graph.get_all_groups(), animal.structure.groups, strict=True):
        gone = np.flatnonzero(~keep[expected.slice].numpy())
        group.prune(root_positions(group, set(gone.tolist())))
    history = graph.pruning_history()
    assert len(history) == len(animal.structure.groups)

    again = graph_of(animal)
    again.load_pruning_history(history)

    same_tensors(again.model, graph.model)


def test_history_can_be_left_unwritten() -> None:
    graph = graph_of(case("plain"))
    stem = graph.model.trunk[0][0]
    graph.get_pruning_group(stem, tp.prune_conv_out_channels, [0]).prune(record_history=False)
    graph.get_pruning_group(stem, tp.prune_conv_out_channels, [4]).prune()

    assert graph.pruning_history() == [["trunk.0.0", True, [4]]]


# Scores.


@pytest.mark.parametrize("id", ids)
def test_importance_has_one_score_a_unit(id: str) -> None:
    animal = case(id)
    graph = graph_of(animal)
    output = graph.model(*animal.inputs)
    tensors = [tensor for task in animal.structure.task_objects for tensor in task.tensors(output)]
    torch.stack([tensor.square().sum() for tensor in tensors]).sum().backward()
    magnitude, taylor = tp.importance.GroupMagnitudeImportance(), tp.importance.GroupTaylorImportance()
    scored = 0
    for group, expected in zip(graph.get_all_groups(), animal.structure.groups, strict=True):
        layers = [item.dep.target.module for item in group]
        learning = all(p.grad is not None for layer in layers for p in layer.parameters(recurse=False))
        for scores in (magnitude(group), taylor(group) if learning else None):
            if scores is not None:
                assert scores.shape == (expected.units,)
                assert torch.isfinite(scores).all()
                assert scores.unique().numel() > 1
                scored += 1
    assert scored >= len(animal.structure.groups)


def test_magnitude_is_of_the_slices_that_leave() -> None:
    """By hand, for one group: filters, norm weights, and the columns that read them."""
    graph = graph_of(case("mlp"))
    trunk = graph.model.trunk
    slices = [trunk[0].weight, trunk[1].weight[:, None], trunk[4].weight.t()]
    squared = torch.stack([part.detach().square().sum(1) for part in slices]).mean(0)
    some = [3, 0, 14]

    for group, expected in [
        (next(graph.get_all_groups()), squared),
        (graph.get_pruning_group(trunk[0], tp.prune_linear_out_channels, some), squared[sorted(some)]),
    ]:
        scores = tp.importance.GroupMagnitudeImportance(p=2)(group)
        torch.testing.assert_close(scores, (expected / expected.mean()).float())


def test_magnitude_of_a_head_is_of_all_its_slices() -> None:
    """Where no slice has one index a unit, scores still rank units: a head of zeros comes last."""
    animal = case("fused-qkv")
    graph = graph_of(animal)
    group = next(group for group in graph.get_all_groups() if len(set(group[0].root_idxs)) == 4)
    graph.model.trunk[1].qkv.weight.data.view(3, 4, 3, -1)[:, 2] = 0
    graph.model.trunk[1].proj.weight.data.view(-1, 4, 3)[:, 2] = 0

    scores = tp.importance.GroupMagnitudeImportance()(group)

    assert scores[2] == 0
    assert (scores[[0, 1, 3]] > 0).all()


# Against stock Torch-Pruning, where it is right.


@functools.cache
def resnet() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10)
    randomize_norms(model)  # timm starts some at zero, where scores say nothing
    return model.double().eval(), torch.randn(2, 3, 64, 64).double()


def both() -> tuple[StructureGraph, tp.DependencyGraph]:
    model, inputs = resnet()
    ours, stock = copy.deepcopy(model), copy.deepcopy(model)
    structure = analyse(model, (inputs,), [Task("kind", lambda output: output)])
    graph = tp.DependencyGraph().build_dependency(stock, (inputs,), verbose=False)
    for copied in (ours, stock):
        copied(inputs).logsumexp(1).sum().backward()
    return StructureGraph(ours, structure), graph


def convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize(
    "importance",
    [
        tp.importance.GroupMagnitudeImportance(),
        tp.importance.GroupMagnitudeImportance(p=1, group_reduction="sum", normalizer=None),
        tp.importance.GroupTaylorImportance(),
    ],
    ids=["magnitude", "l1-sum", "taylor"],
)
def test_scores_are_those_of_stock_torch_pruning(importance: Any) -> None:
    ours, stock = both()
    for name, module in convolutions(ours.model):
        theirs = stock.model.get_submodule(name)
        everything = range(module.out_channels)
        group = ours.get_pruning_group(module, tp.prune_conv_out_channels, everything)
        expected = importance(stock.get_pruning_group(theirs, tp.prune_conv_out_channels, [*everything]))

        torch.testing.assert_close(importance(group), expected, rtol=1e-6, atol=0)  # sums are in float32


def test_pruned_tensors_are_those_of_stock_torch_pruning() -> None:
    ours, stock = both()
    generator = np.random.default_rng(0)
    for name, module in convolutions(ours.model):
        theirs = stock.model.get_submodule(name)
        assert module.out_channels == theirs.out_channels
        chosen = generator.choice(module.out_channels, module.out_channels // 5, replace=False).tolist()
        ours.get_pruning_group(module, tp.prune_conv_out_channels, chosen).prune()
        stock.get_pruning_group(theirs, tp.prune_conv_out_channels, sorted(chosen)).prune()

    same_tensors(ours.model, stock.model)
    _, inputs = resnet()
    with torch.no_grad():
        assert torch.equal(ours.model(inputs), stock.model(inputs))
