"""A pruned network of Ultralytics is one: it trains, fuses, exports, is saved and loaded by the library itself."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")  # read when Ultralytics is imported

import numpy as np
import onnxruntime
import pytest
import torch
import ultralytics
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import disparse_structured as ds
from disparse_structured.adapters.ultralytics import RTDETR, YOLO, images, load, prune, raw_outputs
from disparse_structured.errors import LoadError, OptionError, TaskError, UnsupportedModelError
from tests.support.shapes import COUNT, SIDE, render

QUICK: dict[str, Any] = {"method": ds.DiSparse(criterion=ds.criteria.Magnitude()), "refit": None}

BACKBONE = """
nc: 3
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, C2f, [24, True]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, C2f, [32, True]]
  - [-1, 1, Conv, [48, 3, 2]]
  - [-1, 1, SPPF, [48, 5]]
head:
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 4], 1, Concat, [1]]
  - [-1, 1, C2f, [32]]
"""
"""A small detector's layers, in the library's own format."""

SEGMENT = BACKBONE + "  - [[9, 6], 1, Segment, [nc, 8, 16]]\n"
TWO_HEADS = BACKBONE + "  - [[9, 6], 1, v10Detect, [nc]]\n"


def small(folder: Path, text: str, name: str) -> Any:
    (folder / name).write_text(text)
    yolo = ultralytics.YOLO(str(folder / name))
    for module in yolo.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return yolo


def pictures(count: int = 4) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def outputs(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(model(pictures(1))) if isinstance(leaf, Tensor)]


def widths(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def options(folder: Path) -> dict[str, Any]:
    return {
        "imgsz": SIDE,
        "workers": 0,
        "batch": COUNT,
        "plots": False,
        "amp": False,
        "verbose": False,
        "device": "cpu",
        "project": str(folder),
    }


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    yolo = small(tmp_path_factory.mktemp("dense"), SEGMENT, "tiny-seg.yaml")
    yolo.model.names = {0: "box", 1: "disk", 2: "cone"}
    return yolo


@pytest.fixture(scope="module")
def pruned(dense: Any) -> Any:
    return prune(dense, pictures(), macs=0.5, **QUICK)


def test_the_tasks_are_raw_outputs_and_the_removal_is_verified(dense: Any, pruned: Any) -> None:
    assert [task.name for task in pruned.tasks] == ["boxes", "scores", "masks", "prototypes"]
    assert pruned.report.costs["macs"].ratio <= 0.5
    assert pruned.report.verification is not None
    assert not pruned.report.refused
    assert isinstance(pruned.yolo, ultralytics.YOLO)
    assert pruned.yolo.task == "segment"
    assert widths(pruned.yolo.model) == widths(pruned.model)
    assert pruned.yolo.names == dense.names


def test_the_users_object_is_left_as_it_is(dense: Any) -> None:
    before, modules = copy.deepcopy(dense.model.state_dict()), list(dense.model.modules())
    attributes, overrides, yaml = dict(vars(dense)), dict(dense.overrides), copy.deepcopy(dense.model.yaml)

    result = prune(dense, pictures(), macs=0.6, verify=False, **QUICK)

    assert list(map(id, dense.model.modules())) == list(map(id, modules))
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.model.state_dict().items())
    assert (vars(dense), dense.overrides, dense.model.yaml) == (attributes, overrides, yaml)
    assert dense.model.training  # the library builds networks in train mode
    assert result.yolo.model is not dense.model


def test_it_trains_validates_predicts_exports_and_loads(pruned: Any, tmp_path: Path) -> None:
    data, result = render(tmp_path / "shapes", masks=True), copy.copy(pruned)
    yolo = YOLO(result.yolo)  # another object of the same state
    started: dict[str, Tensor] = {}
    yolo.add_callback(
        "on_train_start", lambda trainer: started.update(copy.deepcopy(trainer.model.state_dict()))
    )

    yolo.train(data=str(data), epochs=1, name="run", **options(tmp_path))

    trained = widths(yolo.model)
    classes = {name for name, shape in widths(pruned.model).items() if trained[name] != shape}
    assert classes == {f"model.10.cv3.{level}.2.{kind}" for level in (0, 1) for kind in ("weight", "bias")}
    assert all(trained[name][0] == 2 for name in classes)
    assert yolo.names == {0: "disk", 1: "box"}
    weight = "model.10.cv3.0.2.weight"  # of the classes box, disk and cone; the data set has disk and box
    assert torch.equal(started[weight], pruned.model.state_dict()[weight][[1, 0]])
    stem = "model.0.conv.weight"
    assert torch.equal(started[stem], pruned.model.state_dict()[stem])
    assert not torch.equal(yolo.model.state_dict()[stem], pruned.model.state_dict()[stem])

    assert yolo.val(data=str(data), name="val", **options(tmp_path)).box is not None
    assert len(yolo.predict(str(tmp_path / "shapes/images/val"), imgsz=SIDE, verbose=False)) == COUNT

    best = tmp_path / "run/weights/best.pt"
    for kind in (ultralytics.YOLO, YOLO):
        loaded = kind(best)
        assert widths(loaded.model) == trained
    exported = loaded.export(format="onnx", imgsz=SIDE, simplify=False)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: pictures(1).numpy()})
    for got, wanted in zip(found, outputs(loaded.model)[:2], strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-3, rtol=1e-3)

    with pytest.raises(KeyError, match=r"disparse_structured\.adapters\.ultralytics"):
        ultralytics.YOLO(best).train(data=str(data), epochs=1, name="refused", **options(tmp_path))
    with pytest.raises(OptionError, match="pretrained"):
        YOLO(best).train(data=str(data), epochs=1, pretrained=False, name="refused", **options(tmp_path))


class Stopped(Exception):
    pass


def test_training_resumes_from_last(pruned: Any, tmp_path: Path) -> None:
    data = render(tmp_path / "shapes", masks=True)
    yolo = YOLO(pruned.yolo)

    def stop(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise Stopped

    yolo.add_callback("on_train_epoch_start", stop)
    with pytest.raises(Stopped):
        yolo.train(data=str(data), epochs=2, name="run", **options(tmp_path))

    again = YOLO(tmp_path / "run/weights/last.pt")
    stopped = widths(again.model)
    again.train(resume=True)

    assert again.trainer.start_epoch == 1
    assert widths(again.model) == stopped
    assert stopped["model.0.conv.weight"] == pruned.model.state_dict()["model.0.conv.weight"].shape


def test_a_folder_is_loaded_as_the_librarys_object(pruned: Any, tmp_path: Path) -> None:
    pruned.save(tmp_path / "small")

    found = load(tmp_path / "small")

    assert isinstance(found, ultralytics.YOLO)
    assert (found.task, found.names) == ("segment", pruned.yolo.names)
    assert all(map(torch.equal, outputs(found.model), outputs(pruned.yolo.model)))
    assert (
        found.overrides["model"] == "tiny-seg-pruned.pt"
    )  # an export does not replace that of the dense network


def test_pruned_twice_it_is_loaded_on_top_of_the_first(pruned: Any, tmp_path: Path) -> None:
    twice = prune(pruned.yolo, pictures(), parameters=0.8, verify=False, **QUICK)
    twice.save(tmp_path)

    found = load(tmp_path, pruned.yolo)

    assert widths(found.model) == widths(twice.model)
    assert all(map(torch.equal, outputs(found.model), outputs(twice.yolo.model)))


def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    ds.prune(model, torch.randn(8, 4), parameters=0.6).save(tmp_path)

    with pytest.raises(LoadError, match="Ultralytics"):
        load(tmp_path)


def test_the_librarys_file_is_loaded(pruned: Any, tmp_path: Path) -> None:
    pruned.yolo.save(tmp_path / "small.pt")  # in half precision

    for kind in (ultralytics.YOLO, YOLO):
        found = kind(tmp_path / "small.pt")
        for got, wanted in zip(outputs(found.model), outputs(pruned.yolo.model), strict=True):
            torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.05)


def test_both_heads_vote_and_fusing_keeps_the_outputs(tmp_path: Path) -> None:
    dense = small(tmp_path, TWO_HEADS, "tiny.yaml")

    result = prune(dense, pictures(), macs=0.5, **QUICK)

    names = ["boxes", "scores", "one2many_boxes", "one2many_scores"]
    assert [task.name for task in result.tasks] == names
    model: Any = result.yolo.model
    with torch.no_grad():
        before = model(pictures(1))
        result.yolo.fuse(verbose=False)
        after = model(pictures(1))
    torch.testing.assert_close(after[0], before[0], atol=1e-3, rtol=1e-3)
    for name in ("boxes", "scores"):
        torch.testing.assert_close(
            after[1]["one2one"][name], before[1]["one2one"][name], atol=1e-3, rtol=1e-3
        )
    result.save(tmp_path / "small")  # the network as it was pruned, not as it was fused
    assert not load(tmp_path / "small").model.is_fused()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("yolov8n-pose", "boxes scores keypoints"),
        ("yolov8n-obb", "boxes scores angles"),
        ("yolov8n-cls", "scores"),
        ("yolo26n-depth", "depth"),
        ("yolo26n-sem", "scores"),
        (
            "yolo26n-seg",
            "boxes scores masks prototypes one2many_boxes one2many_scores one2many_masks",
        ),
        ("yolov8n-rtdetr", "boxes scores encoder_boxes encoder_scores"),
    ],
)
def test_every_head_has_its_raw_outputs(name: str, wanted: str) -> None:
    model: Any = ultralytics.YOLO(f"{name}.yaml").model

    found = raw_outputs(model, pictures(2))

    assert [task.name for task in found] == wanted.split()
    with torch.no_grad():
        output = model.eval()(pictures(2))
    assert all(tensor.is_floating_point() for task in found for tensor in task.tensors(output))


def test_an_rtdetr_is_one(tmp_path: Path) -> None:
    model: Any = ultralytics.RTDETR("yolov8n-rtdetr.yaml").model
    torch.save({"model": model}, tmp_path / "detr.pt")

    assert type(YOLO(tmp_path / "detr.pt")) is RTDETR


def test_images_are_what_the_network_meets(dense: Any, tmp_path: Path) -> None:
    render(tmp_path / "shapes", masks=False)

    found = images(dense, str(tmp_path / "shapes/images/train"), imgsz=96, count=3)

    assert found.shape == (3, 3, 96, 96)
    assert 0 <= found.min() < 0.2
    assert 0.9 < found.max() <= 1


def test_batches_of_the_librarys_loaders_are_read(dense: Any) -> None:
    batches = [{"img": (pictures() * 255).byte(), "cls": torch.zeros(3, 1), "im_file": ["a.png"]}]

    result = prune(dense, iter(batches), ["boxes", "scores"], parameters=0.6, verify=False, **QUICK)

    assert [task.name for task in result.tasks] == ["boxes", "scores"]


def test_what_cannot_be_pruned_is_refused(dense: Any, tmp_path: Path) -> None:
    (tmp_path / "exported.onnx").touch()
    with pytest.raises(UnsupportedModelError, match="Exported"):
        prune(ultralytics.YOLO(tmp_path / "exported.onnx", task="detect"), pictures(), macs=0.5)
    with pytest.raises(UnsupportedModelError, match="ReLU"):
        prune(nn.ReLU(), pictures(), macs=0.5)
    fused = copy.deepcopy(dense.model).fuse(verbose=False)
    with pytest.raises(UnsupportedModelError, match="fused"):
        prune(fused, pictures(), macs=0.5)
    with pytest.raises(TaskError, match="prototypes"):
        prune(dense, pictures(), ["depth"], macs=0.5)
    graph = ds.analyse(dense.model, pictures(2), [ds.Task("boxes", (1, "boxes"))], form="graph")
    with pytest.raises(OptionError, match="form"):
        prune(dense, pictures(), structure=graph, macs=0.5)
