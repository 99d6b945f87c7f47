"""DeepLab on timm trunks: the resolution of its maps, what dilates, and that it prunes and exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.adapters.deeplab import deeplab
from disparse_structured.adapters.timm import MultiTask
from disparse_structured.errors import LoadError, TaskError, UnsupportedModelError
from disparse_structured.export import export_onnx

TWO = {"segmentation": 5, "normals": 3}


def build(trunk: str = "resnet34", **options: object) -> MultiTask:
    torch.manual_seed(0)
    options = {"image_size": 64, "head_width": 4, **options}
    return deeplab(TWO, trunk, **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stride", "sides"), [(8, [32, 16, 8, 8, 8]), (16, [32, 16, 8, 4, 4]), (32, [32, 16, 8, 4, 2])]
)
def test_the_trunks_maps_have_the_output_stride(stride: int, sides: list[int]) -> None:
    model = build(output_stride=stride)
    with torch.no_grad():
        maps = model.backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[-2:]) for m in maps] == [(side, side * 3 // 2) for side in sides]


def test_the_last_two_stages_of_resnet34_are_dilated_2_and_4() -> None:
    convolutions = {
        name: module
        for name, module in build().backbone.net.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    }
    for stage, first, dilation in (("layer1", 1, 1), ("layer2", 1, 1), ("layer3", 1, 2), ("layer4", 2, 4)):
        found = [module.dilation[0] for name, module in convolutions.items() if name.startswith(stage)]
        assert found == [first] + [dilation] * (len(found) - 1), stage
    last = [m for name, m in convolutions.items() if name.startswith(("layer3", "layer4"))]
    assert {module.stride for module in last} == {(1, 1)}
    assert len(convolutions) == 32


def test_atrous_maps_hold_the_strided_ones() -> None:
    # What makes ImageNet weights usable: every 4th pixel of the fine map is the coarse map.
    fine, coarse = build(), build(output_stride=None)
    coarse.backbone.load_state_dict(fine.backbone.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            fine.backbone(x)[-1][..., ::4, ::4], coarse.backbone(x)[-1], atol=1e-5, rtol=1e-4
        )


def test_one_head_a_task_of_four_summed_branches() -> None:
    model = build(head_width=6)
    x = torch.randn(2, 3, 64, 64)
    assert model.head_names == ("segmentation", "normals")
    assert {name: tuple(y.shape) for name, y in model(x).items()} == {
        "segmentation": (2, 5, 64, 64),
        "normals": (2, 3, 64, 64),
    }
    for head in model.heads.values():
        atrous = [m for m in head.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert [m.dilation[0] for m in atrous] == [6, 12, 18, 24]
        assert {(m.in_channels, m.out_channels) for m in atrous} == {(512, 6)}


def test_it_is_pruned_verified_and_exported(tmp_path: Path) -> None:
    model = build("resnet18", image_size=32)
    (x,) = model.example_inputs(2)
    pruned = ds.prune(model, [x], model.tasks(), macs=0.25, refit=None, method=ds.DiSparse())

    assert pruned.report.verification.verified
    assert pruned.report.costs["macs"].ratio == pytest.approx(0.25, abs=0.02)
    with torch.no_grad():
        maps = pruned.model.backbone(x)
    assert maps[-1].shape[-2:] == (4, 4), "pruning keeps the resolution"
    widths = {name: m.out_channels for name, m in pruned.model.named_modules() if isinstance(m, nn.Conv2d)}
    dilated = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.dilation == (4, 4)]
    assert any(widths[name] < 512 for name in dilated)
    facts = export_onnx(
        pruned.model,
        (x,),
        tmp_path / "deeplab.onnx",
        outputs={task.name: task.tensors for task in model.tasks()},
    )
    assert all(fact.max_rel < 1e-3 for fact in facts.parity)


@pytest.mark.parametrize("trunk", ["mobilenetv3_small_100", "convnext_atto", "regnety_002"])
def test_other_trunks_with_strides_that_can_become_dilations(trunk: str) -> None:
    model = build(trunk)
    with torch.no_grad():
        assert model.backbone(torch.randn(1, 3, 64, 64))[-1].shape[-2:] == (8, 8)


@pytest.mark.parametrize("trunk", ["vit_tiny_patch16_224", "densenet121", "hrnet_w18_small"])
def test_a_trunk_without_output_stride_is_refused_with_the_remedy(trunk: str) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=rf"timm's {trunk} cannot be built with output_stride=8: .*Pass output_stride=None to keep",
    ):
        build(trunk)


def test_the_remedy_works() -> None:
    model = build("vit_tiny_patch16_224", output_stride=None)
    assert model(torch.randn(1, 3, 64, 64))["normals"].shape == (1, 3, 64, 64)


def test_a_stride_that_no_network_has_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="resnet34 cannot be built with output_stride=7"):
        build(output_stride=7)


def test_a_wrong_option_without_a_stride_is_not_blamed_on_it() -> None:
    with pytest.raises(TypeError, match="color"):
        build(output_stride=None, color="red")


def test_errors_of_the_model_and_its_heads_come_through(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no model 'resnet3'\. Did you mean"):
        build("resnet3")
    with pytest.raises(TaskError, match="no head was given"):
        deeplab({}, image_size=64)
    with pytest.raises(TaskError, match="outputs must be at least 1"):
        deeplab({"depth": 0}, image_size=64)
    with pytest.raises(LoadError, match=r"none\.pth cannot be read"):
        build(checkpoint_path=tmp_path / "none.pth")


def test_the_trunks_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("resnet10t")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = build("resnet10t", checkpoint_path=tmp_path / "weights.pth")
    kept = dict(model.backbone.net.named_parameters())
    assert torch.equal(kept["layer4.0.conv1.weight"], source.layer4[0].conv1.weight)
