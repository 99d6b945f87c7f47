"""torchvision's detectors and segmenters are pruned and stay torchvision's detectors and segmenters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

import disparse_structured as ds
from disparse_structured.adapters import torchvision as adapter
from disparse_structured.adapters.torchvision_sizes import numbers
from disparse_structured.errors import BatchError, DisparseError, LoadError, OptionError
from disparse_structured.structure import SizeDeclaration
from tests.support.plans import snapshot

CLASSES = 4
SIZES: dict[str, Any] = {"min_size": 64, "max_size": 64}
FAST: dict[str, Any] = {"method": ds.DiSparse(), "refit": None, "regions": 8}


def layer(inputs: int, outputs: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), norm(outputs), nn.ReLU(inplace=True)
    )


def trunk(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(layer(3, 8), layer(8, 12, norm), layer(12, 16, norm))


def pyramid(width: int = 8, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    return BackboneWithFPN(trunk(norm), {"1": "0", "2": "1"}, [12, 16], width)


def anchors(*ratios: float) -> AnchorGenerator:
    return AnchorGenerator(((12,), (24,), (48,)), (ratios,) * 3)


def boxes(width: int = 8) -> dict[str, Any]:
    return {
        "box_head": TwoMLPHead(width * 49, 16),
        "box_predictor": FastRCNNPredictor(16, CLASSES),
        "rpn_anchor_generator": anchors(0.5, 1.0),
        "box_score_thresh": 0.0,
        **SIZES,
    }


def one_map(kind: type[nn.Module] = FasterRCNN, **options: Any) -> nn.Module:
    backbone = trunk()
    backbone.out_channels = 16  # type: ignore[assignment]
    given = {**boxes(16), "rpn_anchor_generator": AnchorGenerator(((12, 24),), ((1.0,),)), **options}
    return kind(backbone, box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2), **given)


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "faster": one_map,
    "mask": lambda: MaskRCNN(
        pyramid(norm=FrozenBatchNorm2d),
        mask_head=MaskRCNNHeads(8, (8, 8), 1),
        mask_predictor=MaskRCNNPredictor(8, 8, CLASSES),
        **boxes(),
    ),
    "keypoint": lambda: one_map(
        KeypointRCNN,
        keypoint_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        keypoint_head=KeypointRCNNHeads(16, (8, 8)),
        keypoint_predictor=KeypointRCNNPredictor(8, 5),
    ),
    "retinanet": lambda: RetinaNet(
        pyramid(), CLASSES, anchor_generator=anchors(1.0), score_thresh=0.0, **SIZES
    ),
    "fcos": lambda: FCOS(
        pyramid(64),
        CLASSES,
        anchor_generator=anchors(1.0),
        head=FCOSHead(64, 1, CLASSES, 1),
        score_thresh=0.0,
        **SIZES,
    ),
    "ssd": lambda: SSD(
        IntermediateLayerGetter(trunk(), {"1": "0", "2": "1"}),
        DefaultBoxGenerator([[2], [2]]),
        (64, 64),
        CLASSES,
        score_thresh=0.0,
    ),
}
TASKS = {
    "faster": "objectness proposals classes boxes",
    "mask": "objectness proposals classes boxes masks",
    "keypoint": "objectness proposals classes boxes keypoints",
    "retinanet": "classes boxes",
    "fcos": "classes boxes centerness",
    "ssd": "boxes classes",
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    detector = DETECTORS[name]()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr, operator]
    return detector.eval()


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in ((64, 48), (40, 64), (64, 64), (50, 64))]


def targets() -> list[dict[str, Tensor]]:
    target = {
        "boxes": torch.tensor([[4.0, 6.0, 28.0, 30.0], [20.0, 10.0, 44.0, 36.0]]),
        "labels": torch.tensor([1, 2]),
        "masks": torch.ones(2, 40, 48, dtype=torch.uint8),
        "keypoints": torch.rand(2, 5, 3) * 20 + 8,
    }
    return [{**target, "masks": torch.ones(2, *image.shape[1:], dtype=torch.uint8)} for image in images()]


@functools.cache
def pruned(name: str) -> tuple[nn.Module, adapter.Pruned]:
    detector = build(name)
    # Each of the 32 groups of FCOS's group norms keeps one channel.
    return detector, adapter.prune(detector, images(), macs=0.8 if name == "fcos" else 0.5, **FAST)


def same(first: Any, second: Any) -> bool:
    pairs = [(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a.keys() | b.keys()]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_the_same_when_nothing_is_pruned(name: str) -> None:
    detector = build(name)
    before = snapshot(detector)
    raw = adapter.raw(detector)
    assert isinstance(raw, adapter.RawDetector)

    again = raw.detector()

    assert snapshot(detector) == before
    assert type(again) is type(detector)
    with torch.no_grad():
        found = again(images())
        assert same(found, detector(images()))
        assert sum(len(each["boxes"]) for each in found)
    assert list(again.state_dict()) == list(detector.state_dict()) == list(raw.state_dict())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_pruned_detector_detects_and_trains(name: str) -> None:
    detector, (smaller, result) = pruned(name)

    assert [task.name for task in result.tasks] == TASKS[name].split()
    assert result.report.costs["macs"].ratio <= (0.8 if name == "fcos" else 0.5)
    assert "train mode" in result.report.verification.beyond
    assert not result.report.verification.empty
    assert not result.report.refused
    assert max(result.report.verification.deviation.values()) < 1e-9
    assert type(smaller) is type(detector)
    count = [sum(each.numel() for each in model.parameters()) for model in (smaller, detector)]
    assert count[0] < 0.9 * count[1]
    with torch.no_grad():
        for given, dense in zip(smaller(images()), detector(images()), strict=True):
            assert given.keys() == dense.keys()

    student = adapter.raw(smaller).detector()  # type: ignore[operator]
    student.train()
    losses = student(images(), targets())
    sum(losses.values()).backward()
    assert losses.keys() == build(name).train()(images(), targets()).keys()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(each.grad is not None for each in smaller.parameters())
    smaller.zero_grad()
    smaller.eval()


def test_the_heads_see_what_torchvision_would_show_them() -> None:
    detector: Any = build("mask")
    raw: Any = adapter.raw(detector)
    given = raw.inputs(images(), regions=12)
    assert given["images"].shape == (4, 3, 64, 64)
    assert given["regions"].shape == (4, 12, 4)
    given["regions"][:, 0] = torch.tensor([0.0, 0.0, 60.0, 60.0]) * 8  # a large region: the coarsest level

    with torch.no_grad():
        found = raw(**given)
        features = detector.backbone(given["images"])
        heads = detector.roi_heads
        regions, sizes = list(given["regions"]), [(64, 64)] * 4
        classes, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, regions, sizes)))
        masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, regions, sizes)))
        objectness, proposals = detector.rpn.head(list(features.values()))
    torch.testing.assert_close(found["classes"].flatten(0, 1), classes)
    torch.testing.assert_close(found["boxes"].flatten(0, 1), deltas)
    torch.testing.assert_close(found["masks"].flatten(0, 1), masks)
    torch.testing.assert_close(found["objectness"], objectness)
    torch.testing.assert_close(found["proposals"], proposals)


def test_pruning_leaves_the_detector_alone() -> None:
    detector = build("faster").train()
    before, own = snapshot(detector), dict(vars(detector.rpn.anchor_generator))  # type: ignore[union-attr, arg-type]

    _, result = adapter.prune(detector, images(), parameters=0.7, **FAST)
    with pytest.raises(DisparseError):
        adapter.prune(detector, images(), macs=0.001, **FAST)

    assert detector.training
    assert snapshot(detector) == before
    assert vars(detector.rpn.anchor_generator) == own  # type: ignore[union-attr, arg-type]
    assert result.model.training


@pytest.mark.parametrize("name", ["keypoint", "ssd"])
def test_a_saved_detector_comes_back(name: str, tmp_path: Path) -> None:
    _, (smaller, result) = pruned(name)
    result.save(tmp_path)

    loaded = adapter.load(tmp_path, lambda: build(name))

    with torch.no_grad():
        assert same(loaded(images()), smaller.eval()(images()))
    with pytest.raises(LoadError, match="is missing"):
        adapter.load(tmp_path / "nothing", lambda: build(name))


def test_the_part_without_post_processing_is_exported(tmp_path: Path) -> None:
    _, (_, result) = pruned("faster")

    facts = result.export(tmp_path / "part.onnx")

    assert {each.name for each in facts.inputs} == {"images", "regions"}
    assert {each.task for each in facts.parity} == set(TASKS["faster"].split())
    assert max(each.max_abs for each in facts.parity) < 1e-4


def test_the_default_method_and_a_second_round(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(
        [(image, target) for image, target in zip(images(), targets(), strict=True)],
        batch_size=2,
        collate_fn=lambda batch: tuple(zip(*batch, strict=True)),
    )
    first = adapter.prune(build("faster"), loader, ["classes", "boxes"], macs=0.7, regions=8)
    assert first.result.report.refit is not None
    assert [task.name for task in first.result.tasks] == ["classes", "boxes"]

    second = adapter.prune(first.model, torch.stack([images()[2]] * 2), macs=0.8, **FAST)

    with torch.no_grad():
        assert len(second.model(images())) == 4


@pytest.mark.parametrize(
    ("given", "options", "error", "says"),
    [
        ([], {}, BatchError, "there is no image"),
        (["a.png"], {}, BatchError, "but found 'a.png'"),
        (torch.rand(64, 64), {}, BatchError, r"but found a tensor \[64, 64\] of torch.float32"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), {}, BatchError, "of torch.uint8"),
        (7, {}, BatchError, "but found 7"),
        (None, {"regions": 0}, OptionError, "regions must be an integer of at least 1, got 0"),
        (None, {"to_inputs": list}, OptionError, "to_inputs= cannot be used with a detector"),
        (None, {"drop_unused": True}, OptionError, "drop_unused= cannot be used with a detector"),
    ],
)
def test_wrong_images_and_options_are_refused(
    given: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        adapter.prune(build("faster"), images() if given is None else given, macs=0.5, **options)


def test_an_exported_graph_cannot_be_put_back() -> None:
    detector = build("retinanet")
    raw: Any = adapter.raw(detector)
    structure = ds.analyse(raw, (raw.inputs(images())["images"],), form="graph")

    with pytest.raises(OptionError, match="cannot be put back around an exported graph"):
        adapter.prune(detector, images(), macs=0.5, structure=structure)


def test_a_segmenter_is_pruned_as_it_is(tmp_path: Path) -> None:
    def segmenter() -> nn.Module:
        torch.manual_seed(0)
        backbone = IntermediateLayerGetter(trunk(), {"1": "aux", "2": "out"})
        return FCN(backbone, FCNHead(16, 3), FCNHead(12, 3)).eval()

    given = torch.rand(2, 3, 32, 32)
    smaller, result = adapter.prune(segmenter(), given, macs=0.8, method=ds.DiSparse(), refit=None)

    assert smaller is result.model
    assert [task.name for task in result.tasks] == ["out", "aux"]
    result.save(tmp_path)
    with torch.no_grad():
        found, wanted = adapter.load(tmp_path, segmenter)(given), smaller(given)
    assert same([found], [wanted])


def test_out_channels_counts_what_a_backbone_returns() -> None:
    raw = adapter.raw(build("faster"))

    assert list(numbers(raw)) == [SizeDeclaration("backbone.out_channels", "backbone.forward", {4: 1})]
    assert list(numbers(pyramid())) == [SizeDeclaration("out_channels", "forward", {4: 1})]
    assert not list(numbers(nn.Conv2d(3, 3, 1)))
