"""Extraction: what no chosen task needs is removed, the rest is verified, and the model is left alone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from disparse_structured import DiSparse, Task, prune
from disparse_structured.adapters.timm import DenseHead, LinearHead, multitask
from disparse_structured.errors import TaskError
from disparse_structured.export import export_onnx
from disparse_structured.surgery.extraction import Extracted, extract


def convolution(inside: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


IMAGES = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def network(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter), alpha=0.1)
    return model


class Attributes(nn.Module):
    """Heads as attributes, called one by one; the deep stage is for labels only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 8)
        self.deep = convolution(8, 16)
        self.depth_head = nn.Sequential(convolution(8, 6), nn.Conv2d(6, 1, 1))
        self.label_head = nn.Sequential(convolution(16, 6), nn.Conv2d(6, 4, 1))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        depth = self.depth_head(x)
        return {"depth": depth, "labels": self.label_head(self.deep(x))}


class Tuple(nn.Module):
    """Three outputs in a tuple; the heads in a list that is gone through with zip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 8)
        self.heads = nn.ModuleList(nn.Conv2d(8, count, 1) for count in (1, 2, 3))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(image)
        return tuple(head(x) * scale for head, scale in zip(self.heads, (1, 2, 3), strict=True))


class Strict(nn.Module):
    """``forward`` computes with what the other head returns, so that a stub has to return a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 8)
        self.near = nn.Conv2d(8, 2, 1)
        self.far = nn.Conv2d(8, 5, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        far = self.far(x)
        assert far.shape[1:] == (5, 4, 4)
        return {"near": self.near(x), "far": far.square().mean((2, 3))}


class ByHand(nn.Module):
    """One head is read by its parameter, not called: it cannot be taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 8)
        self.near = nn.Conv2d(8, 2, 1)
        self.far = nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        return {"near": self.near(x), "far": nn.functional.conv2d(x, self.far.weight)}


class Units(nn.Module):
    """One convolution makes the channels of both tasks: half of them are for each."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Conv2d(3, 12, 3, padding=1)
        self.near, self.far = nn.Conv2d(4, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.both(image).relu()
        return {"near": self.near(x[:, :4]), "far": self.far(x[:, 4:])}


def equal(found: Extracted, model: nn.Module, inputs: tuple[Any, ...] = IMAGES) -> bool:
    """The chosen tasks' selectors pick from the result what they pick from the full model."""
    with torch.no_grad():
        lean, full = found.model(*inputs), model(*inputs)
    pairs = [
        pair for task in found.tasks for pair in zip(task.tensors(lean), task.tensors(full), strict=True)
    ]
    return all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def test_heads_in_a_dict_vanish() -> None:
    torch.manual_seed(0)
    heads = {"kind": LinearHead(3), "depth": DenseHead(1, 8), "seg": DenseHead(4, 8)}
    model = multitask("test_resnet", heads, image_size=32).eval()
    inputs = model.example_inputs()
    found = extract(model, inputs, model.tasks(), ["depth"])

    assert found.removed == ("heads.kind", "heads.seg")
    assert found.left == ()
    assert list(found.model(*inputs)) == ["depth"]
    assert found.model.head_names == ("depth",)
    assert equal(found, model, inputs)
    assert max(found.deviation.values()) <= 1e-9
    assert found.dtype == "torch.float64"
    lost = sum(parameter.numel() for name in ("kind", "seg") for parameter in model.heads[name].parameters())
    assert found.parameters[0] - found.parameters[1] == lost


def test_a_stage_of_a_pyramid_that_one_head_reads_is_removed_with_it() -> None:
    torch.manual_seed(0)
    heads = {"fine": DenseHead(1, 8, levels=(-3,)), "coarse": LinearHead(3)}
    model = multitask("test_resnet", heads, image_size=32).eval()
    inputs = model.example_inputs()
    found = extract(model, inputs, model.tasks(), ["fine"])

    assert found.removed == ("backbone.net.layer3", "backbone.net.layer4", "heads.coarse")
    assert equal(found, model, inputs)


def test_attributes_and_a_stage_for_one_task_only_are_stubbed() -> None:
    model = network(Attributes)
    tasks = [Task("depth", "depth"), Task("labels", "labels")]
    depth, labels = extract(model, IMAGES, tasks, ["depth"]), extract(model, IMAGES, tasks, ["labels"])

    assert depth.removed == ("deep", "label_head")
    assert names(depth.model) == {n for n in names(model) if n.startswith(("stem", "depth_head"))}
    assert depth.model(*IMAGES)["labels"] is None
    assert labels.removed == ("depth_head",)
    assert equal(depth, model)
    assert equal(labels, model)
    assert depth.macs[1] < depth.macs[0]


@functools.cache
def of_tuple(*kept: str) -> tuple[nn.Module, Extracted]:
    """A network with its parts for the tasks ``kept``, to be read only."""
    model = network(Tuple)
    return model, extract(model, IMAGES, [Task(f"t{place}", place) for place in range(3)], kept)


def test_positions_in_a_tuple_stay_what_they_are() -> None:
    for kept in (["t0"], ["t1"], ["t2", "t0"]):
        model, found = of_tuple(*kept)
        assert {task.name for task in found.tasks} == set(kept)
        assert len(found.removed) == 3 - len(kept)
        assert equal(found, model)


def test_a_stub_returns_a_tensor_where_forward_needs_one() -> None:
    found = extract(network(Strict), IMAGES, [Task("near", "near"), Task("far", "far")], ["near"])

    assert found.removed == ("far",)
    assert found.model(*IMAGES)["far"].shape == (2, 5)
    assert found.model(torch.randn(5, 3, 8, 8))["far"].shape == (5, 5)
    assert equal(found, network(Strict))


def test_what_cannot_be_removed_is_named_and_left() -> None:
    model = network(ByHand)
    found = extract(model, IMAGES, [Task("near", "near"), Task("far", "far")], ["near"])

    assert found.removed == ()
    assert [each.module for each in found.left] == ["far"]
    assert "weight" in found.left[0].reason
    assert "left in place: far" in str(found)
    assert equal(found, model)


def test_units_that_no_chosen_task_reaches_go() -> None:
    model = network(Units)
    tasks = [Task("near", "near"), Task("far", "far")]
    found = extract(model, IMAGES, tasks, ["near"])

    assert found.removed == ("far",)
    assert found.units_removed == 7
    assert found.model.both.out_channels == 5  # no group of units may vanish altogether
    assert equal(found, model)


@settings(max_examples=8, deadline=None)
@given(st.sets(st.sampled_from(["t0", "t1", "t2"]), min_size=1))
def test_fewer_tasks_never_cost_more(kept: set[str]) -> None:
    model, found = of_tuple(*sorted(kept))

    assert found.parameters[1] <= found.parameters[0]
    assert (found.parameters[1] == found.parameters[0]) == (len(kept) == 3)
    assert equal(found, model)


def test_the_model_is_left_alone_and_modes_are_kept() -> None:
    model = network(Attributes).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    found = extract(model, IMAGES[0], [Task("depth", "depth"), Task("labels", "labels")], ["depth"])

    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert found.model.stem.training
    assert torch.equal(random, torch.get_rng_state())
    found.model(*IMAGES)["depth"].sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_result_is_pruned_and_exported(tmp_path: Path) -> None:
    found = extract(
        network(Attributes), IMAGES, [Task("depth", "depth"), Task("labels", "labels")], ["labels"]
    )
    pruned = prune(found.model, IMAGES, found.tasks, macs=0.5, refit=None, method=DiSparse())
    facts = export_onnx(
        pruned.model, IMAGES, tmp_path / "model.onnx", outputs={t.name: t.tensors for t in found.tasks}
    )

    assert pruned.report.costs["macs"].ratio < 0.51
    assert {fact.task for fact in facts.parity} == {"labels"}


@pytest.mark.parametrize("keep", [[], ["deep"], "depth", ["depth", "label"]])
def test_what_names_no_tasks_is_refused(keep: Any) -> None:
    with pytest.raises(TaskError, match=r"The tasks are \['depth', 'labels'\]"):
        extract(network(Attributes), IMAGES, [Task("depth", "depth"), Task("labels", "labels")], keep)
