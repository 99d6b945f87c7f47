from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

from disparse_structured.adapters.timm import ASPPHead, DenseHead, Head, LinearHead, MultiTask, multitask
from disparse_structured.errors import LoadError, TaskError, UnsupportedModelError
from disparse_structured.export import export_onnx

THREE = {"kind": LinearHead(5), "depth": DenseHead(1, 12), "seg": ASPPHead(4, (1, 2, 3), 8)}
LIGHT = ["resnet10t", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224", "mobilevit_xxs"]
HEAVY = [
    "resnet18",
    "resnet50",
    "efficientnet_b0",
    "densenet121",
    "regnety_002",
    "hrnet_w18_small",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s16_224",
    "cait_xxs24_224",
    "pvt_v2_b0",
]


def build(
    backbone: str = "resnet10t", image_size: int | tuple[int, int] = 64, **options: object
) -> MultiTask:
    torch.manual_seed(0)
    model = multitask(backbone, THREE, image_size=image_size, **options)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize("backbone", LIGHT + [pytest.param(name, marks=pytest.mark.sweep) for name in HEAVY])
def test_three_heads_on_a_backbone_forward_and_export(backbone: str) -> None:
    model = build(backbone)
    (x,) = model.example_inputs(batch=2)
    with torch.no_grad():
        outputs = model(x)
        exported = torch.export.export(model, (x,), strict=False).module()(x)

    assert {name: tuple(y.shape) for name, y in outputs.items()} == {
        "kind": (2, 5),
        "depth": (2, 1, 64, 64),
        "seg": (2, 4, 64, 64),
    }
    for name, y in outputs.items():
        assert not torch.allclose(y[0], y[1], atol=1e-6), f"{name} does not depend on the image"
        torch.testing.assert_close(exported[name], y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_a_transformers_map_is_its_patch_tokens_behind_the_final_norm(backbone: str) -> None:
    model = build(backbone, image_size=(32, 64))
    (x,) = model.example_inputs(batch=2)
    plain = model.backbone.net.model
    with torch.no_grad():
        (grid,) = model.backbone(x)
        tokens = plain.forward_features(x)[:, plain.num_prefix_tokens :]

    assert grid.shape == (2, 192, 2, 4)
    torch.testing.assert_close(grid.flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize("backbone", ["hieradet_small", "hiera_tiny_224"])
def test_transformers_whose_maps_timm_does_not_normalize(backbone: str) -> None:
    model = multitask(backbone, THREE, image_size=64, embed_dim=16, num_heads=1, stages=(1, 1, 1, 1)).eval()

    with torch.no_grad():
        outputs = model(*model.example_inputs())
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "kind": (2, 5), "depth": (2, 1, 64, 64), "seg": (2, 4, 64, 64),
    }  # fmt: skip


def test_a_grid_that_timm_reads_off_the_data_is_known_from_the_images(tmp_path: Path) -> None:
    """So that the network can be exported, if not optimized by torch; the map is the one that timm makes."""
    if not timm.is_model("gemma4_vit_167m"):
        pytest.skip("this timm is older than the model")
    model = multitask(
        "gemma4_vit_167m", THREE, image_size=(96, 48), embed_dim=32, depth=2, num_heads=2, head_dim=16,
        intermediate_size=48, position_embedding_size=64, out_indices=1,
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 96, 48)
    net = model.backbone.net

    with torch.no_grad():
        (expected,) = net.model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        (found,) = model.backbone(images)
    assert torch.equal(found, expected)
    facts = export_onnx(
        model,
        (images,),
        tmp_path / "model.onnx",
        outputs={task.name: task.tensors for task in model.tasks()},
        dynamic_size=False,
    )
    assert facts.dynamic == "batch"


def test_channels_last_maps_are_turned() -> None:
    torch.manual_seed(0)
    model = multitask("swin_tiny_patch4_window7_224", {"kind": LinearHead(3)}, image_size=(64, 96)).eval()
    (x,) = model.example_inputs(batch=1)
    with torch.no_grad():
        maps = model.backbone(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)]


def test_heads_follow_another_image_size_than_they_were_built_for() -> None:
    model = build(image_size=64)
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 50, 70))
    assert outputs["depth"].shape == (1, 1, 50, 70)
    assert outputs["seg"].shape == (1, 4, 50, 70)


def test_in_chans_and_image_size_reach_the_example_inputs() -> None:
    model = multitask("resnet10t", {"depth": DenseHead(1)}, image_size=(48, 64), in_chans=4)
    assert model.input_size == (4, 48, 64)
    assert model.double().example_inputs(3)[0].shape == (3, 4, 48, 64)
    assert model.example_inputs()[0].dtype == torch.float64
    assert multitask("resnet10t", {"depth": DenseHead(1)}).input_size == (3, 176, 176)


def test_a_dense_head_reads_every_level_that_it_names() -> None:
    torch.manual_seed(0)
    model = multitask("resnet10t", {"depth": DenseHead(2, 8, levels=(1, -1, 4))}, image_size=64).eval()
    maps = model.backbone(*model.example_inputs(1))
    maps = [m.detach().requires_grad_() for m in maps]
    model.heads["depth"](maps, (64, 64)).sum().backward()
    assert [m.grad is not None for m in maps] == [False, True, False, False, True]
    assert len(model.heads["depth"].laterals) == 2, "the last level was named twice"


def test_an_aspp_head_is_the_sum_of_its_branches() -> None:
    torch.manual_seed(0)
    head = ASPPHead(3, rates=(1, 4), width=6).build([5]).eval()
    x = torch.randn(2, 5, 8, 8)
    convolutions = [branch[0][0] for branch in head.branches]
    assert [(c.dilation, c.kernel_size) for c in convolutions] == [((1, 1), (3, 3)), ((4, 4), (3, 3))]
    torch.testing.assert_close(head([x], (8, 8)), sum(branch(x) for branch in head.branches))


def test_tasks_pick_their_heads_output_and_take_losses() -> None:
    model = build()
    outputs = model(*model.example_inputs())

    def loss(output: Tensor, batch: object) -> Tensor:
        return output.square().mean()

    kind, depth, seg = model.tasks({"depth": loss})
    assert (kind.name, depth.name, seg.name) == model.head_names == ("kind", "depth", "seg")
    assert depth.pick(outputs) is outputs["depth"]
    assert (kind.loss, depth.loss, seg.loss) == (None, loss, None)
    with pytest.raises(TaskError, match=r"'dpth', but the heads are \['kind', 'depth', 'seg'\]"):
        model.tasks({"dpth": loss})


def test_a_head_of_ones_own() -> None:
    @dataclass(frozen=True)
    class Maximum(Head):
        def build(self, channels: object) -> nn.Module:
            class Module(nn.Module):
                def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
                    return maps[-1].amax((1, 2, 3))

            return Module()

    model = multitask("resnet10t", {"most": Maximum()}, image_size=64)
    assert model(*model.example_inputs(3))["most"].shape == (3,)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_patch16_224"])
def test_backbone_weights_come_from_a_file(backbone: str, suffix: str, tmp_path: Path) -> None:
    size = {"img_size": 64} if backbone.startswith("vit") else {}
    torch.manual_seed(1)
    source = timm.create_model(backbone, **size)
    for buffer in source.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(source.state_dict(), path)
    else:
        torch.save({"state_dict": source.state_dict()}, path)

    model = build(backbone, checkpoint_path=path)
    loaded = {key.replace("model.", "", 1): value for key, value in model.backbone.net.state_dict().items()}
    kept = [key for key in source.state_dict() if not key.startswith(("head.", "fc."))]
    assert sorted(loaded) == sorted(kept)
    for key in kept:
        torch.testing.assert_close(loaded[key], source.state_dict()[key], rtol=0, atol=0, msg=key)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"some.weight": torch.randn(3)}, path)
    with pytest.raises(
        LoadError, match=r"leaves \d+ of \d+ parameters of resnet10t as initialized; the first"
    ):
        build(checkpoint_path=path)

    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(LoadError, match=r"other.safetensors does not fit resnet26t: [\s\S]*size mismatch"):
        build("resnet26t", checkpoint_path=path)


def test_one_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = timm.create_model("resnet10t").state_dict()
    del weights["layer2.0.conv1.weight"]
    path = tmp_path / "partial.pth"
    torch.save(weights, path)
    with pytest.raises(LoadError, match=r"leaves 1 of \d+ .* 'layer2.0.conv1.weight'"):
        build(checkpoint_path=path)


def test_unreadable_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none.pth cannot be read as weights \(FileNotFoundError"):
        build(checkpoint_path=tmp_path / "none.pth")
    torch.save({"state_dict": nn.Linear(2, 2)}, tmp_path / "pickled.pth")
    with pytest.raises(LoadError, match=r"pickled.pth cannot be read .* holds tensors only"):
        build(checkpoint_path=tmp_path / "pickled.pth")


def test_an_unknown_backbone_gets_suggestions() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no model 'resnet81'. Did you mean .*resnet\d"):
        multitask("resnet81", THREE)
    with pytest.raises(UnsupportedModelError, match=r"no model 'zzzzzzz'. See timm.list_models\(\)"):
        multitask("zzzzzzz", THREE)


def test_a_backbone_without_features_is_refused() -> None:
    class Featureless(nn.Module):
        def __init__(self, num_classes: int = 1000, **options: object) -> None:
            super().__init__()
            self.fc = nn.Linear(3, num_classes)

    @register_model
    def featureless_probe(pretrained: bool = False, **options: object) -> nn.Module:
        return timm.models.build_model_with_cfg(Featureless, "featureless_probe", pretrained, **options)

    with pytest.raises(
        UnsupportedModelError, match=r"featureless_probe gives no feature maps .* your module"
    ):
        multitask("featureless_probe", THREE)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({}, "no head was given"),
        ({"a.b": LinearHead(2)}, "'a.b' cannot name a module"),
        ({"two words": LinearHead(2)}, "'two words' cannot name a module"),
        ({"class": LinearHead(2)}, "'class' cannot name a module"),
        ({"type": LinearHead(2)}, "'type' cannot name a module"),
        ({"depth": 3}, "'depth' is of type int. Use LinearHead"),
        ({"depth": DenseHead(1, levels=(-1, 5))}, r"reads level 5, but .* 5 maps. Use a level from -5 to 4"),
    ],
)
def test_bad_heads_are_refused(heads: dict[str, Head], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        multitask("resnet10t", heads)


def test_bad_numbers_of_a_head_are_refused() -> None:
    with pytest.raises(TaskError, match=r"LinearHead\(outputs=0, level=-1\): outputs must be at least 1"):
        LinearHead(0)
    with pytest.raises(TaskError, match=r"kernel 2\. Use an odd side"):
        DenseHead(1, kernel=2)
    with pytest.raises(TaskError, match="rates must be at least 1"):
        ASPPHead(1, rates=())
    with pytest.raises(TaskError, match="levels must be at least 1"):
        DenseHead(1, levels=())
