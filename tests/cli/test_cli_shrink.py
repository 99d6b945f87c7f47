"""``disparse shrink``, by its exit codes, its output and the folders it writes."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from disparse_structured import Plan, load
from disparse_structured.cli import main
from disparse_structured.cli.names import REFITS

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3))
        self.near = nn.Conv2d(12, 2, 1)
        self.far = nn.Sequential(nn.Conv2d(12, 6, 1), nn.ReLU(), nn.Conv2d(6, 1, 1))

    def forward(self, image):
        shared = self.trunk(image)
        near = self.near(shared)
        return {"near": near, "far": self.far(shared), "classes": near.argmax(1)}


class Scaled(Net):
    def forward(self, image, scale):
        return super().forward(image * scale)


def build():
    torch.manual_seed(3)
    return Net().eval()


def scaled():
    torch.manual_seed(3)
    return Scaled().eval()


images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
batches = list(images.split(4))
number = 3


def loader():
    for batch in batches:
        yield batch, "labels that nobody reads"


def failing():
    yield batches[0]
    raise RuntimeError("the disk is gone")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's directory with ``net.py`` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.py").write_text(NETWORK)
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if _lies_in(module, tmp_path)]:
        del sys.modules[name]


def _lies_in(module: object, folder: Path) -> bool:
    return str(getattr(module, "__file__", None)).startswith(str(folder))


def images(count: int = 20) -> torch.Tensor:
    return torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))[:count]


def shrink(*more: str, inputs: str = "net:images", model: str = "net:build") -> list[str]:
    return ["shrink", "--model", model, "--inputs", inputs, "--macs", "0.6", "--out", "out", *more]


def report_of(*words: str) -> dict:
    assert main(list(words)) == 0
    return json.loads(Path("out", "report.json").read_text())


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert shown.err.startswith("disparse: error: ")
    return shown.err


def test_one_command_from_images_to_an_onnx_file_that_agrees(project, capsys):
    assert main(shrink("--onnx", "--latency", "--json")) == 0
    document = json.loads(capsys.readouterr().out)

    report = document["report"]
    assert document["files"] == ["plan.json", "weights.safetensors", "report.json", "model.onnx"]
    assert report == json.loads(Path("out", "report.json").read_text())
    assert report["costs"]["macs"]["counted"] <= 0.6 * report["costs"]["macs"]["dense"]
    assert [(task["name"], task["labelled"]) for task in report["tasks"]] == [("near", False), ("far", False)]
    assert report["refit"]["samples"] == 20
    assert set(report["refit"]["after"]) == {"near", "far"}
    assert report["plan"] == Plan.load("out/plan.json").hash
    assert [model["name"] for model in report["latency"]["models"]] == ["dense", "pruned"]
    import net

    with torch.no_grad():
        expected = load("out", net.build)(images(5))
    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["near", "far"], {session.get_inputs()[0].name: images(5).numpy()})
    for name, output in zip(("near", "far"), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected[name], rtol=1e-4, atol=1e-5)


def test_people_get_the_deviation_with_and_without_refit_and_show_repeats_it(project, capsys):
    report = report_of(*shrink("--no-onnx"))
    shown = capsys.readouterr().out
    assert main(["show", "out"]) == 0
    again = capsys.readouterr().out

    for text in (shown, again):
        assert "deviation from dense" in text
        for task in ("near", "far"):
            for moment in ("before", "after"):
                assert f"{100 * report['refit'][moment][task]:.3g} %" in text
    assert not Path("out/model.onnx").exists()


def save_as(name: str) -> None:
    if name.endswith(".npy"):
        np.save(name, images().double().numpy())
    elif name.endswith(".npz"):
        np.savez(name, images=images().numpy())
    elif name.endswith(".safetensors"):
        save_file({"images": images()}, name)
    else:
        torch.save(images(), name)


@pytest.mark.parametrize(
    "inputs",
    ["x.npy", "x.npz", "x.pt", "x.pth", "x.safetensors", "net:batches", "net:loader", "net.py:images"],
)
def test_inputs_come_from_files_and_from_code_alike(project, capsys, inputs):
    expected = report_of(*shrink("--no-onnx", "--no-verify"))["plan"]
    if inputs.startswith("x."):
        save_as(inputs)

    report = report_of(*shrink("--no-onnx", "--no-verify", inputs=inputs))

    assert report["plan"] == expected
    assert report["refit"]["samples"] == 20


def test_a_file_of_several_tensors_feeds_a_model_of_two_inputs(project, capsys):
    np.savez("both.npz", image=images().numpy(), scale=np.ones((20, 1, 1, 1), np.float32))

    report = report_of(*shrink(model="net:scaled", inputs="both.npz"))

    assert [entry["name"] for entry in report["export"]["inputs"]] == ["image", "scale"]


@pytest.mark.parametrize("name", REFITS)
def test_every_refit_has_a_name(project, capsys, name):
    report = report_of(*shrink("--no-onnx", "--refit", name))

    assert (report["refit"] is None) == (name == "none")


def test_options_reach_the_plan_and_the_report(project, capsys):
    words = shrink(
        "--no-onnx", "--no-verify", "--samples", "8", "--criterion", "l1", "--arbiter", "majority",
        "--ranking", "layer", "--tasks", "only=far", "--min-width", "3", "--seed", "4",
    )  # fmt: skip

    report = report_of(*words)

    plan = Plan.load("out/plan.json")
    assert report["refit"]["samples"] == 8
    assert [task["name"] for task in report["tasks"]] == ["only"]
    assert (report["criterion"], report["arbiter"]) == ("Magnitude(p=1)", "Majority()")
    assert plan.provenance.seed == 4
    assert not report["verification"]["verified"]
    assert min(group.kept for group in plan.groups) >= 3


class Payload:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return Path.write_text, (Path("ran"), "code ran")


def test_a_file_of_inputs_runs_no_code(project, capsys):
    Path("x.pt").write_bytes(pickle.dumps(Payload(), 2))
    np.save("x.npy", np.array([Payload()], dtype=object), allow_pickle=True)

    for name in ("x.pt", "x.npy"):
        assert "cannot be read" in refusal(capsys, *shrink(inputs=name))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--inputs", "absent.npy"], "--inputs 'absent.npy': there is no such file in "),
        (["--inputs", "broken.npy"], "--inputs 'broken.npy' cannot be read"),
        (["--inputs", "text.pt"], "--inputs 'text.pt' holds a str. Save one tensor [N, ...]"),
        (["--inputs", "nothing.pt"], "--inputs 'nothing.pt' holds nothing."),
        (["--inputs", "stored.npy"], "holds uint8 [4, 8, 8, 3], images as they are stored. Save what"),
        (["--inputs", "pictures"], "--inputs 'pictures' is a folder. Only the model's own code knows"),
        (["--inputs", "one.npy"], "1 example is too few"),
        (["--inputs", "wrong.npy"], "Net refused a batch, called with ((2, 5, 8, 8)"),
        (["--inputs", "nan.npy"], "holds NaN or infinite values"),
        (["--inputs", "net:imagse"], "Did you mean 'images'?"),
        (["--inputs", "net:number"], "--inputs 'net:number' is of type int, which yields no batches"),
        (["--inputs", "net:failing"], "--inputs: reading a batch raised RuntimeError: the disk is gone"),
        (["--inputs", "images"], "--inputs 'images' names no object"),
        (["--samples", "1"], "--samples 1: at least 2"),
        (["--refit", "leats-squares"], "--refit 'leats-squares' is unknown. Did you mean 'least-squares'?"),
        (["--tasks", "naer"], "the selector 'naer' misses"),
        (["--tasks", "classes"], "task 'classes' has no loss, and its output"),
        (["--latency", "--no-onnx"], "--latency times ONNX files"),
        (["--macs", "0.0001"], "cannot be met"),
        (["--out", "net.py"], "is a file. Give a folder."),
    ],
)
def test_bad_input_is_named_with_the_remedy(project, capsys, words, says):
    Path("broken.npy").write_bytes(b"no array")
    Path("pictures").mkdir()
    torch.save("a string", "text.pt")
    torch.save({}, "nothing.pt")
    np.save("stored.npy", np.zeros((4, 8, 8, 3), np.uint8))
    np.save("one.npy", images(1).numpy())
    np.save("wrong.npy", np.zeros((6, 5, 8, 8), np.float32))
    np.save("nan.npy", np.stack([np.zeros((3, 8, 8)), np.full((3, 8, 8), np.nan)]))

    assert says in refusal(capsys, *shrink(*words))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("shrink --model net:build --macs 0.5 --out out", "arguments are required: --inputs"),
        ("shrink --model net:build --inputs net:images --out out", "--macs --parameters is required"),
    ],
)
def test_what_is_missing_is_named(project, capsys, words, says):
    assert says in refusal(capsys, *words.split())
