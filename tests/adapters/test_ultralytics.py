"""A pruned network of Ultralytics is one: the library itself trains, fuses, exports, saves and loads it."""

from __future__ import annotations

import copy
import os
import re
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
from tests.support.shapes import COUNT, DECODER, SEGMENT, SIDE, TWO_HEADS, render, small

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ultralytics.md"
QUICK: dict[str, Any] = {"method": ds.DiSparse(criterion=ds.criteria.Magnitude()), "refit": None}


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
    yolo = small(tmp_path_factory.mktemp("dense") / "tiny-seg.yaml", SEGMENT)
    yolo.model.names = {0: "box", 1: "disk", 2: "cone"}
    return yolo


@pytest.fixture(scope="module")
def pruned(dense: Any) -> Any:
    """The result, from batches as the library's loaders yield them; the user's object is left as it is."""
    model, attributes = dense.model, dict(vars(dense))
    state, yaml, modules = copy.deepcopy(
        (model.state_dict(), model.yaml, [id(each) for each in model.modules()])
    )
    batches = [{"img": (pictures() * 255).byte(), "cls": torch.zeros(3, 1), "im_file": ["a.png"]}]

    result = prune(dense, iter(batches), macs=0.5, **QUICK)

    assert (vars(dense), dense.model, model.yaml) == (attributes, model, yaml)
    assert [id(each) for each in model.modules()] == modules
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.training  # the library builds networks in train mode
    return result


def test_the_tasks_are_raw_outputs_and_the_removal_is_verified(dense: Any, pruned: Any) -> None:
    assert [task.name for task in pruned.tasks] == ["boxes", "scores", "masks", "prototypes"]
    assert pruned.report.costs["macs"].ratio <= 0.5
    assert pruned.report.verification.verified
    assert not pruned.report.refused
    assert isinstance(pruned.yolo, ultralytics.YOLO)
    assert pruned.yolo.task == "segment"
    assert pruned.yolo.names == dense.names
    assert widths(pruned.yolo.model) == widths(pruned.model)
    assert pruned.yolo.model is not pruned.model


def test_it_trains_validates_predicts_exports_and_loads(pruned: Any, tmp_path: Path) -> None:
    data, yolo = render(tmp_path / "shapes"), copy.deepcopy(pruned.yolo)
    started: dict[str, Tensor] = {}
    yolo.add_callback(
        "on_train_start", lambda trainer: started.update(copy.deepcopy(trainer.model.state_dict()))
    )

    yolo.train(data=str(data), epochs=1, name="run", **options(tmp_path))

    trained, before = widths(yolo.model), pruned.model.state_dict()
    classes = {name for name, tensor in before.items() if trained[name] != tensor.shape}
    assert classes == {f"model.9.cv3.{level}.2.{kind}" for level in (0, 1) for kind in ("weight", "bias")}
    assert all(trained[name][0] == 2 for name in classes)
    assert yolo.names == {0: "disk", 1: "box"}
    weight, stem = "model.9.cv3.0.2.weight", "model.0.conv.weight"
    assert torch.equal(started[weight], before[weight][[1, 0]])  # the rows of disk and box
    assert torch.equal(started[stem], before[stem])
    assert not torch.equal(yolo.model.state_dict()[stem], before[stem])

    assert yolo.val(data=str(data), name="val", **options(tmp_path)).box is not None
    assert len(yolo.predict(str(tmp_path / "shapes/images/val"), imgsz=SIDE, verbose=False)) == COUNT

    best = tmp_path / "run/weights/best.pt"
    loaded = ultralytics.YOLO(best)
    assert widths(loaded.model) == trained
    exported = loaded.export(format="onnx", imgsz=SIDE, simplify=False)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: pictures(1).numpy()})
    for got, wanted in zip(found, outputs(loaded.model)[:2], strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-3, rtol=1e-3)
    script = torch.jit.load(loaded.export(format="torchscript", imgsz=SIDE))
    torch.testing.assert_close(script(pictures(1))[0], outputs(loaded.model)[0], atol=1e-3, rtol=1e-3)

    with pytest.raises(KeyError, match=r"disparse_structured\.adapters\.ultralytics"):
        loaded.train(data=str(data), epochs=1, name="refused", **options(tmp_path))
    with pytest.raises(OptionError, match="pretrained"):
        YOLO(best).train(data=str(data), epochs=1, pretrained=False, name="refused", **options(tmp_path))


class Stopped(Exception):
    pass


def test_training_resumes_from_last(pruned: Any, tmp_path: Path) -> None:
    data, yolo = render(tmp_path / "shapes"), copy.deepcopy(pruned.yolo)

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
    # Exports are called after it, so that they do not replace those of the dense network.
    assert found.overrides["model"] == "tiny-seg-pruned.pt"


@pytest.mark.sweep
def test_pruned_twice_it_is_loaded_on_top_of_the_first(pruned: Any, tmp_path: Path) -> None:
    twice = prune(pruned.yolo, pictures(), parameters=0.8, **QUICK)
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
    dense = small(tmp_path / "tiny.yaml", TWO_HEADS)
    dense.model.end2end = True

    result = prune(dense, pictures(), macs=0.5, verify=False, **QUICK)

    names = ["boxes", "scores", "one2many_boxes", "one2many_scores"]
    assert [task.name for task in result.tasks] == names
    model: Any = result.yolo.model
    with torch.no_grad():
        before = model(pictures(1))
        result.yolo.fuse(verbose=False)
        after = model(pictures(1))
    torch.testing.assert_close(after[0], before[0], atol=1e-3, rtol=1e-3)
    for name in ("boxes", "scores"):
        got, wanted = after[1]["one2one"][name], before[1]["one2one"][name]
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)
    fused: Any = result.model
    assert not fused.is_fused()  # what is saved is the network as it was pruned


def test_an_rtdetr_trains_with_denoising(tmp_path: Path) -> None:
    """Its loss joins an embedding of the classes to the queries; no forward pass without labels does."""
    everywhere = ds.DiSparse(criterion=ds.criteria.Magnitude(), ranking=ds.rankings.LayerRanking())
    dense = small(tmp_path / "tiny.yaml", DECODER)

    result = prune(dense, pictures(), macs=0.6, method=everywhere, refit=None, verify=False)

    result.yolo.train(data=str(render(tmp_path / "shapes")), epochs=1, name="run", **options(tmp_path))

    assert type(result.yolo) is RTDETR
    before, trained = widths(result.model), widths(result.yolo.model)
    assert before["model.0.conv.weight"] == trained["model.0.conv.weight"]
    changed = {name.split(".")[2] for name, shape in before.items() if trained[name] != shape}
    assert changed == {"enc_score_head", "dec_score_head", "denoising_class_embed"}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("yolov8n-pose", "boxes scores keypoints"),
        ("yolov8n-obb", "boxes scores angles"),
        ("yolov8n-cls", "scores"),
        ("yolo26n-depth", "depth"),
        ("yolo26n-seg", "boxes scores masks prototypes one2one_boxes one2one_scores one2one_masks"),
        ("yolov8n-rtdetr", "boxes scores encoder_boxes encoder_scores"),
    ],
)
def test_every_head_has_its_raw_outputs(name: str, wanted: str, tmp_path: Path) -> None:
    kind: Any = ultralytics.RTDETR if name.endswith("rtdetr") else ultralytics.YOLO
    yolo = kind(f"{name}.yaml")
    model = yolo.model.eval()

    found = raw_outputs(model, pictures(2))

    assert [task.name for task in found] == wanted.split()
    with torch.no_grad():
        output = model(pictures(2))
    assert all(tensor.is_floating_point() for task in found for tensor in task.tensors(output))
    if name.endswith("rtdetr"):
        yolo.save(tmp_path / "detr.pt")
        assert type(YOLO(tmp_path / "detr.pt")) is RTDETR


def test_images_are_what_the_network_meets(dense: Any, tmp_path: Path) -> None:
    render(tmp_path / "shapes")

    found = images(dense, str(tmp_path / "shapes/images/train"), imgsz=96, count=3)

    assert found.shape == (3, 3, 96, 96)
    assert 0 <= found.min() < 0.2
    assert 0.9 < found.max() <= 1


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
    graph = ds.analyse(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(2, 4), form="graph")
    with pytest.raises(OptionError, match="form"):
        prune(dense, pictures(), structure=graph, macs=0.5)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    render(tmp_path / "shapes")
    small(tmp_path / "tiny-seg.yaml", SEGMENT).save("yolo11n-seg.pt")
    names: dict[str, Any] = {}

    for block in re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
    ):
        exec(compile(block, PAGE.name, "exec"), names)

    assert names["result"].report.costs["macs"].ratio <= 0.6
    assert (tmp_path / "yolo11n-seg-pruned.onnx").is_file()
    assert len(names["best"].names) == 2
