"""Branched trunks: the same outputs, own parameters, and the rest of the package works on them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from disparse_structured import DiSparse, analyse, prune
from disparse_structured.adapters.branching import branch, children_before
from disparse_structured.adapters.timm import DenseHead, LinearHead, MultiTask, multitask
from disparse_structured.errors import TaskError, UnsupportedModelError
from disparse_structured.relatedness import fresh, relate
from disparse_structured.surgery.extraction import extract

HEADS = {"kind": LinearHead(3), "depth": DenseHead(1, 8), "seg": DenseHead(4, 8, levels=(-2, -1))}


@functools.cache
def model(backbone: str = "test_resnet") -> MultiTask:
    torch.manual_seed(0)
    return multitask(backbone, HEADS, image_size=32).eval()


def outputs(of: nn.Module, inputs: tuple[Any, ...]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found: dict[str, torch.Tensor] = of(*inputs)
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 8),
    st.sampled_from(
        [None, [["kind", "seg"], ["depth"]], [["seg", "depth", "kind"]], [["seg"], ["kind"], ["depth"]]]
    ),
)
def test_wherever_the_trunk_branches_the_outputs_are_bit_identical(at: int, clusters: Any) -> None:
    dense = model()
    inputs = dense.example_inputs()
    branched = branch(dense, at, clusters)

    expected, found = outputs(dense, inputs), outputs(branched, inputs)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("backbone", ["convnext_atto", "regnety_002", "swin_tiny_patch4_window7_224"])
def test_other_trunks_branch_too_at_any_child(backbone: str) -> None:
    torch.manual_seed(0)
    dense = multitask(backbone, {"kind": LinearHead(3), "depth": DenseHead(1, 8)}, image_size=64).eval()
    inputs = dense.example_inputs(1)
    expected = outputs(dense, inputs)
    for at in range(1, len(dense.backbone.net), 3):
        found = outputs(branch(dense, at), inputs)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_copies_begin_behind_the_named_child() -> None:
    dense = model()
    branched = branch(dense, "layer2", [["kind"], ["depth", "seg"]])
    names = [name for name, _ in branched.named_parameters()]
    sizes = {
        name: sum(p.numel() for n, p in dense.named_parameters() if f".{name}." in n)
        for name in ("layer3", "layer4")
    }

    assert sum(parameter.numel() for parameter in branched.parameters()) == sum(
        parameter.numel() for parameter in dense.parameters()
    ) + sum(sizes.values())
    assert sum(".layer2.0.conv1.weight" in name for name in names) == 1
    assert sum(".layer3.0.conv1.weight" in name for name in names) == 2
    ends = [parameter for name, parameter in branched.named_parameters() if "layer3.0.conv1" in name]
    assert ends[0] is not ends[1]
    assert torch.equal(ends[0], ends[1])


def test_a_copy_is_reached_by_its_own_tasks_only() -> None:
    branched = branch(model(), "layer1", [["kind"], ["depth", "seg"]])
    structure = analyse(branched, branched.example_inputs(), branched.tasks())
    reach = {member.parameter: set(group.reach) for group in structure.groups for member in group.members}
    found = [tasks for name, tasks in reach.items() if name.endswith("layer3.0.conv1.weight")]

    assert sorted(found, key=len) == [{"kind"}, {"depth", "seg"}]
    assert all(tasks == set(HEADS) for name, tasks in reach.items() if name.endswith("layer1.0.conv1.weight"))


def test_training_one_branch_leaves_the_others_alone() -> None:
    dense = model()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    branched = branch(dense, "layer2").train()
    images = torch.randn(4, 3, 32, 32)
    branched(images)["depth"].square().mean().backward()
    moved = {name for name, p in branched.named_parameters() if p.grad is not None and p.grad.any()}

    assert any("layer1" in name for name in moved)
    own = {name.split("layer4")[0] for name in moved if "layer4" in name}
    assert len(own) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_a_branched_model_is_pruned_and_exported(tmp_path: Path) -> None:
    branched = branch(model(), "layer2", [["kind"], ["depth", "seg"]])
    inputs = branched.example_inputs()
    assert branched.head_names == ("kind", "depth", "seg")
    pruned = prune(branched, inputs[0], branched.tasks(), macs=0.5, refit=None, method=DiSparse())

    assert pruned.report.costs["macs"].ratio < 0.51
    assert pruned.report.verification.verified
    kept = {
        name.split("layer3")[0]: parameter.shape[0]
        for name, parameter in pruned.model.named_parameters()
        if name.endswith("layer3.0.conv1.weight")
    }
    assert len(kept) == 2  # of each copy its own width
    facts = pruned.export(tmp_path / "model.onnx", dynamic_batch=False, dynamic_size=False)
    assert {fact.task for fact in facts.parity} == set(HEADS)


def test_the_watershed_is_a_place_to_branch() -> None:
    dense = model()
    names = list(dense.backbone.net)

    assert names[children_before(dense, "backbone.net.layer3.0.conv2.weight")] == "layer3"
    assert children_before(dense, "backbone.net.conv1.0") == 0
    with pytest.raises(TaskError, match="not in the trunk"):
        children_before(dense, "heads.kind.predict.weight")


def test_relatedness_says_where_and_how_to_branch() -> None:
    dense = fresh(model(), seed=0)  # timm starts with residual branches at zero, which keep nothing
    assert isinstance(dense, MultiTask)
    inputs = dense.example_inputs(4)
    found = relate(dense, inputs, dense.tasks(), [inputs[0]], ratio=0.8)
    assert found.watershed is not None
    at = children_before(dense, found.watershed.layer)
    branched = branch(dense, at, found.clusters(2))

    expected, own = outputs(dense, inputs), outputs(branched, inputs)
    assert all(torch.equal(own[name], expected[name]) for name in expected)
    behind = list(dense.backbone.net)[at:]
    copied = sum(p.numel() for name in behind for p in dense.backbone.net[name].parameters())
    assert copied > 0
    dense_size, size = (sum(p.numel() for p in each.parameters()) for each in (dense, branched))
    assert size == dense_size + copied


def test_of_a_branched_model_a_tasks_own_branch_can_be_extracted() -> None:
    dense = model()
    inputs = dense.example_inputs()
    for kept in ("kind", "seg"):
        alone = extract(dense, inputs, dense.tasks(), [kept])
        found = extract(branch(dense, "layer1"), inputs, dense.tasks(), [kept])

        assert found.parameters[1] == alone.parameters[1]
        assert torch.equal(outputs(found.model, inputs)[kept], outputs(dense, inputs)[kept])


@pytest.mark.parametrize("at", ["layer9", 99, -1, 1.5, "backbone"])
def test_a_place_that_is_none_is_refused(at: Any) -> None:
    with pytest.raises(TaskError, match="'layer4'"):
        branch(model(), at)


@pytest.mark.parametrize(
    "clusters",
    [
        [["kind"], ["depth"]],
        [["kind", "depth", "seg"], ["seg"]],
        [["kind", "depth", "seg"], []],
        [["kind", "depth", "sag"]],
    ],
)
def test_clusters_that_are_no_partition_are_refused(clusters: Any) -> None:
    with pytest.raises(TaskError, match="every task once"):
        branch(model(), 3, clusters)


def test_other_models_are_refused_with_a_remedy() -> None:
    vit = multitask("vit_tiny_patch16_224", {"kind": LinearHead(3)}, image_size=32)
    with pytest.raises(UnsupportedModelError, match=r"FeatureGetterNet.*ResNet"):
        branch(vit, 1)
    with pytest.raises(UnsupportedModelError, match="Sequential"):
        branch(nn.Sequential(), 1)
    with pytest.raises(UnsupportedModelError, match="branches already"):
        branch(branch(model(), 3), 3)
