"""A pruned timm model goes on living like a timm model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.adapters.timm import DenseHead, LinearHead, multitask
from disparse_structured.decision.plan import Plan
from disparse_structured.structure import Structure, analyse
from disparse_structured.structure.entry_points import SIZES
from disparse_structured.surgery.module import apply
from tests.support.plans import Case, deviation, random_keep

TASKS = (ds.Task("out", lambda output: output),)
CLASSES = 10
EXACT = 1e-7  # timm resizes position embeddings in single precision


@dataclass(frozen=True)
class Family:
    """A model of ``size`` pixels, and which side roads of timm it has."""

    model: str
    size: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)
    other_size: int | None = 96
    fused: bool = False
    resizable: bool = False
    checkpoints: bool = True
    again: bool = True
    heavy: bool = False


STAGES = {"embed_dim": 24, "depths": (2, 1), "num_heads": (2, 4), "window_size": 2}
FAMILIES = [
    Family("resnet10t"),
    Family("mobilenetv3_small_050"),
    Family("ghostnet_050", heavy=True),
    Family("efficientnet_lite0", heavy=True),
    Family("convnext_atto", options={"depths": (1, 1, 2, 1)}),
    Family("regnety_002", heavy=True),
    Family("hrnet_w18_small", checkpoints=False, heavy=True),
    Family("densenet121", options={"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    Family(
        "vit_tiny_patch16_224",
        options={"depth": 3, "img_size": 64, "dynamic_img_size": True},
        fused=True,
        resizable=True,
    ),
    Family(
        "deit_tiny_distilled_patch16_224",
        options={"depth": 2, "img_size": 64, "dynamic_img_size": True},
        fused=True,
        resizable=True,
    ),
    Family(
        "eva02_tiny_patch14_224",
        56,
        {"depth": 2, "img_size": 56, "dynamic_img_size": True},
        84,
        fused=True,
        resizable=True,
    ),
    Family(
        "swin_tiny_patch4_window7_224",
        options={**STAGES, "img_size": 64, "strict_img_size": False},
        other_size=128,
        fused=True,
        resizable=True,
    ),
    Family(
        "swinv2_tiny_window8_256",
        options={**STAGES, "img_size": 64, "strict_img_size": False},
        other_size=128,
        resizable=True,
        heavy=True,
    ),
    Family("xcit_nano_12_p16_224", options={"depth": 2}, fused=True),
    Family("cait_xxs24_224", options={"depth": 2, "img_size": 64}, other_size=None),
    Family("levit_128s", 224, other_size=None, heavy=True),
    Family("mobilevit_xxs", fused=True, heavy=True),
    Family(
        "davit_tiny",
        options={"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 96, 192), "num_heads": (1, 2, 4, 8)},
        fused=True,
        heavy=True,
    ),
    Family(
        "pvt_v2_b0",
        options={
            "depths": (1, 1),
            "embed_dims": (32, 64),
            "num_heads": (2, 4),
            "sr_ratios": (8, 1),
            "mlp_ratios": (8, 4),
        },
        fused=True,
    ),
    # Once its heads are shared out unevenly over three windows, their counts are no ratios any more.
    Family(
        "coat_lite_tiny",
        options={"img_size": 64},
        other_size=None,
        checkpoints=False,
        again=False,
        heavy=True,
    ),
    Family("repvit_m0_9", heavy=True),
    Family("maxvit_rmlp_pico_rw_256", options={"img_size": 64}, other_size=None, resizable=True, heavy=True),
]


def families(condition: str | None = None) -> list[Any]:
    """Those of which ``condition`` holds, as parameters of a test; one process tests all of a family."""
    found = [family for family in FAMILIES if condition is None or getattr(family, condition)]
    return [pytest.param(family.model, marks=marks(family), id=family.model) for family in found]


def marks(family: Family) -> list[pytest.MarkDecorator]:
    group = pytest.mark.xdist_group(f"life of {family.model}")
    return [group, pytest.mark.sweep] if family.heavy else [group]


every = pytest.mark.parametrize("name", families())


@dataclass(frozen=True, eq=False)
class Life:
    """A dense float64 model with telling weights, and about half of it; neither is ever changed."""

    family: Family
    dense: Any
    structure: Structure
    keep: Tensor
    pruned: Any

    @property
    def images(self) -> Tensor:
        return images(self.family.size)

    def again(self) -> Any:
        """A copy to go on with."""
        return copy.deepcopy(self.pruned)

    def half_of(self, dense: nn.Module, inputs: Tensor) -> nn.Module:
        """The same half of a variant of the dense model."""
        structure = analyse(dense, inputs, TASKS)
        assert widths(structure) == widths(self.structure)
        return apply(dense, Plan.from_keep(structure, self.keep), structure, verify=False).model


@functools.cache
def life(name: str) -> Life:
    family = next(family for family in FAMILIES if family.model == name)
    torch.manual_seed(0)
    dense = timm.create_model(name, num_classes=CLASSES, **family.options).double().eval()
    with torch.no_grad():
        for parameter in dense.parameters():  # scales and biases of zero would hide what is behind them
            parameter.add_(0.05 * torch.randn_like(parameter))
    structure = analyse(dense, images(family.size), TASKS)
    keep = random_keep(structure, 0, 0.5)
    pruned = apply(dense, Plan.from_keep(structure, keep), structure, verify=False).model
    return Life(family, dense, structure, keep, pruned)


def widths(structure: Structure) -> list[tuple[str, int]]:
    return [(group.name, group.units) for group in structure.groups]


def images(size: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def gap(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


def loss(model: nn.Module, inputs: Tensor) -> Tensor:
    """With the same dropout every time; distilled models return two outputs in train mode."""
    torch.manual_seed(1)
    output = model(inputs)
    return sum(each.square().mean() for each in (output if isinstance(output, tuple) else (output,)))


def gradients(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """By name, of the parameters that get one."""
    loss(model, inputs).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_numbers_of_timm_are_registered() -> None:
    found = [entry.value for entry in metadata.entry_points(group=SIZES, name="timm")]
    assert found == ["disparse_structured.adapters.timm_sizes:numbers"], "install the package again"


@every
def test_it_is_about_half(name: str) -> None:
    was, now = (sum(p.numel() for p in model.parameters()) for model in (life(name).dense, life(name).pruned))
    assert 0.15 < now / was < 0.6


@pytest.mark.parametrize("name", families("fused"))
@torch.no_grad()
def test_fused_and_unfused_attention_agree(name: str) -> None:
    pruned = life(name).again()
    expected = pruned(life(name).images)
    attentions = [module for module in pruned.modules() if hasattr(module, "fused_attn")]
    assert attentions
    for module in attentions:
        module.fused_attn = not module.fused_attn
    assert gap(pruned(life(name).images), expected) < EXACT


@pytest.mark.parametrize("name", families("fused"))
@torch.no_grad()
def test_pruned_without_fused_attention_and_run_with_it(name: str) -> None:
    dense = copy.deepcopy(life(name).dense)
    for module in dense.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    structure = analyse(dense, life(name).images, TASKS)
    plan = Plan.from_keep(structure, random_keep(structure, 1, 0.5))
    pruned = apply(dense, plan, structure, verify=False).model
    expected = pruned(life(name).images)
    for module in pruned.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    assert gap(pruned(life(name).images), expected) < EXACT


@every
@torch.no_grad()
def test_a_larger_batch_is_smaller_ones_together(name: str) -> None:
    pruned, five = life(name).pruned, images(life(name).family.size, 5)
    assert gap(pruned(five), torch.cat([pruned(five[:1]), pruned(five[1:])])) < EXACT


@pytest.mark.parametrize("name", families("other_size"))
@torch.no_grad()
def test_another_image_size_is_the_masked_twin_of_that_size(name: str) -> None:
    size = life(name).family.other_size
    assert size is not None
    case = Case.of(life(name).dense, (images(size),), TASKS)
    assert widths(case.structure) == widths(life(name).structure)
    outputs = case.outputs(life(name).pruned)
    assert deviation(outputs, case.twin(life(name).keep)) < EXACT


@pytest.mark.parametrize("name", families("resizable"))
@torch.no_grad()
def test_set_input_size(name: str) -> None:
    size = 2 * life(name).family.size
    dense, pruned = copy.deepcopy(life(name).dense), life(name).again()
    dense.set_input_size((size, size))
    pruned.set_input_size((size, size))
    expected = life(name).half_of(dense, images(size))
    assert gap(pruned(images(size)), expected(images(size))) < EXACT


@every
def test_it_trains(name: str) -> None:
    """Every parameter that learns in the dense model does, and a small step lowers the loss."""
    dense, pruned, inputs = copy.deepcopy(life(name).dense), life(name).again(), life(name).images
    assert gradients(pruned.train(), inputs).keys() == gradients(dense.train(), inputs).keys()
    before = loss(pruned, inputs)
    torch.optim.SGD(pruned.parameters(), lr=1e-7).step()
    assert loss(pruned, inputs) < before


@pytest.mark.parametrize("name", families("checkpoints"))
def test_gradients_with_checkpointing_are_those_without(name: str) -> None:
    pruned = life(name).again().train()
    expected = gradients(copy.deepcopy(pruned), life(name).images)
    pruned.set_grad_checkpointing(True)
    found = gradients(pruned, life(name).images)
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert max((found[key] - expected[key]).abs().max() for key in expected) < EXACT * largest


@every
@torch.no_grad()
def test_bfloat16(name: str) -> None:
    """Pruned and then cast, or cast and then pruned."""
    inputs = life(name).images.bfloat16()
    cast = life(name).again().bfloat16()
    assert gap(cast(inputs), life(name).pruned(life(name).images)) < 0.1
    cut = life(name).half_of(copy.deepcopy(life(name).dense).bfloat16(), inputs)
    assert {tensor.dtype for tensor in cut.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(cut(inputs), cast(inputs), rtol=0, atol=0)


@every
@torch.no_grad()
def test_features_head_and_the_numbers_that_tell_their_widths(name: str) -> None:
    pruned, dense, inputs = life(name).pruned, life(name).dense, life(name).images
    features, was = pruned.forward_features(inputs), dense.forward_features(inputs)
    assert gap(pruned.forward_head(features), pruned(inputs)) < EXACT
    assert pruned.forward_head(features, pre_logits=True).shape == (2, pruned.head_hidden_size)
    assert pruned.head_hidden_size < dense.head_hidden_size
    (channels,) = (now for now, before in zip(features.shape, was.shape, strict=True) if now < before)
    assert pruned.num_features == channels


@every
@torch.no_grad()
def test_intermediate_maps_have_the_channels_that_feature_info_tells(name: str) -> None:
    pruned, inputs = life(name).pruned, life(name).images
    final, maps = pruned.forward_intermediates(inputs)
    told = [info["num_chs"] for info in pruned.feature_info]
    assert [each.shape[1] for each in maps] == told
    assert sum(told) < sum(info["num_chs"] for info in life(name).dense.feature_info)
    assert gap(pruned.forward_head(final), pruned(inputs)) < EXACT


@every
@torch.no_grad()
def test_other_classes_and_none(name: str) -> None:
    pruned, inputs = life(name).again(), life(name).images
    before = pruned.forward_head(pruned.forward_features(inputs), pre_logits=True)
    pruned.reset_classifier(7)
    assert pruned(inputs).shape == (2, 7)
    assert gap(pruned.forward_head(pruned.forward_features(inputs), pre_logits=True), before) < EXACT
    pruned.reset_classifier(0)
    assert pruned(inputs).shape == before.shape
    pruned.reset_classifier(5)
    assert pruned(inputs).shape == (2, 5)


@every
@torch.no_grad()
def test_without_its_last_layers(name: str) -> None:
    pruned = life(name).again()
    pruned.prune_intermediate_layers(1, prune_head=False)
    pruned.reset_classifier(7)
    assert pruned(life(name).images).shape == (2, 7)


@every
@torch.no_grad()
def test_a_copy_with_the_weights_of_another_is_the_other(name: str) -> None:
    copied = life(name).again()
    for tensor in [*copied.parameters(), *copied.buffers()]:
        tensor.zero_()
    assert not torch.equal(copied(life(name).images), life(name).pruned(life(name).images))
    copied = life(name).again()
    for parameter in copied.parameters():
        parameter.zero_()
    copied.load_state_dict(life(name).pruned.state_dict())
    assert torch.equal(copied(life(name).images), life(name).pruned(life(name).images))


@pytest.mark.parametrize("name", families("again"))
@torch.no_grad()
def test_it_is_exported_and_pruned_again(name: str) -> None:
    case = Case.of(life(name).again(), (life(name).images,), TASKS)
    whole = torch.ones(case.structure.units, dtype=torch.bool)
    assert deviation(case.outputs(case.model), case.twin(whole)) < EXACT
    keep = random_keep(case.structure, 1, 0.5)
    assert case.deviation(keep) < EXACT
    twice: Any = case.pruned(keep)
    assert twice.head_hidden_size < life(name).pruned.head_hidden_size
    twice.reset_classifier(7)
    assert twice(life(name).images).shape == (2, 7)


HEADS = {"depth": DenseHead(1, 8), "kind": LinearHead(5)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {"out_indices": (1, 2, -1)}),
        ("mobilenetv3_small_050", {}),
        ("vit_tiny_patch16_224", {"depth": 2, "out_indices": (0, 1)}),
        ("swin_tiny_patch4_window7_224", STAGES),
        pytest.param("efficientnet_lite0", {}, marks=pytest.mark.sweep),
        pytest.param("hrnet_w18_small", {}, marks=pytest.mark.sweep),
    ],
)
@torch.no_grad()
def test_channels_of_a_pruned_feature_extractor(name: str, options: dict[str, Any]) -> None:
    dense = multitask(name, HEADS, image_size=64, **options).eval()
    structure = analyse(dense, dense.example_inputs(), dense.tasks())
    plan = Plan.from_keep(structure, random_keep(structure, 0, 0.5))
    pruned: Any = apply(dense, plan, structure, verify=False).model
    (inputs,) = dense.example_inputs()
    told = pruned.backbone.net.feature_info.channels()
    assert told == [each.shape[1] for each in pruned.backbone(inputs)]
    assert sum(told) < 0.7 * sum(dense.backbone.net.feature_info.channels())


@torch.no_grad()
def test_maps_that_are_the_networks_output_keep_their_channels() -> None:
    dense = timm.create_model("resnet10t", features_only=True).eval()
    structure = analyse(dense, torch.randn(2, 3, 64, 64), [ds.Task("maps", lambda maps: maps)])
    plan = Plan.from_keep(structure, random_keep(structure, 0, 0.5))
    pruned: Any = apply(dense, plan, structure).model
    assert pruned.feature_info.channels() == [64, 64, 128, 256, 512]
    assert [each.shape[1] for each in pruned(torch.randn(1, 3, 96, 96))] == [64, 64, 128, 256, 512]
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in dense.parameters())


@torch.no_grad()
def test_a_backbone_without_classes_in_a_model_of_ones_own() -> None:
    """Its width is no output, so it shrinks, and a classifier made later fits."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = timm.create_model("regnety_002", num_classes=0, depth=8)
            self.out = nn.Linear(self.body.num_features, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.body(x))

    dense, inputs = Own().eval(), torch.randn(2, 3, 64, 64)
    structure = analyse(dense, inputs, TASKS)
    pruned: Any = apply(dense, Plan.from_keep(structure, random_keep(structure, 0, 0.5)), structure).model
    assert pruned.body.num_features == pruned.out.in_features < 368
    pruned.body.reset_classifier(7)
    assert pruned.body(inputs).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet10t", {}), ("vit_tiny_patch16_224", {"depth": 2, "out_indices": 1})],
    ids=["resnet10t", "vit_tiny_patch16_224"],
)
def test_a_bfloat16_model_works_throughout(name: str, options: dict[str, Any]) -> None:
    model = multitask(name, HEADS, image_size=64, **options).bfloat16().eval()
    (inputs,) = model.example_inputs()
    pruned = ds.prune(model, [inputs], model.tasks(), macs=0.5, refit=None, method=ds.DiSparse())
    assert {tensor.dtype for tensor in pruned.model.parameters()} == {torch.bfloat16}
    assert pruned.model(inputs)["depth"].shape == (2, 1, 64, 64)
