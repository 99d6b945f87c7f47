"""``result.quantize``: two files from one pruned network, compared with the dense one too."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import onnxruntime
import pytest
import torch

import disparse_structured as ds
from disparse_structured.cli import main
from disparse_structured.errors import BatchError
from disparse_structured.pipeline import PruningResult
from tests.support.command_line import refusal
from tests.support.int8 import Lopsided, deviation, int8_layers, outputs_of

NET = """
import torch
from tests.support.int8 import Lopsided


def build():
    return Lopsided().eval()


def images():
    return torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(0))
"""


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dense() -> Lopsided:
    return Lopsided().eval()


@pytest.fixture(scope="module")
def result(dense: Lopsided, images: torch.Tensor) -> PruningResult:
    return ds.prune(dense, images, macs=0.7)


def test_both_files_are_compared_with_the_dense_network(
    dense: Lopsided, result: PruningResult, images: torch.Tensor, tmp_path: Path
) -> None:
    before = copy.deepcopy(dense.state_dict())
    weights = copy.deepcopy(result.model.state_dict())

    facts = result.quantize(images, tmp_path / "model.onnx", dense=dense, tolerance=0.2, rounds=0)

    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.int8.onnx", "model.onnx"]
    assert facts.float_path == str(tmp_path / "model.onnx")
    assert 0 < int8_layers(facts.path) == len(facts.quantized)
    with torch.no_grad():
        wanted = dense(images)
    for task, fact in facts.tasks.items():
        assert fact.pruned is not None
        assert fact.int8_from_dense is not None
        seen = deviation(outputs_of(facts.path, images)[task], wanted[task].numpy())
        assert fact.int8_from_dense == pytest.approx(seen, rel=0.3)
        assert fact.int8 <= 0.2
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert all(torch.equal(value, weights[name]) for name, value in result.model.state_dict().items())


def test_a_pruned_graph_with_a_fixed_batch(dense: Lopsided, images: torch.Tensor, tmp_path: Path) -> None:
    structure = ds.analyse(dense, (images[:2],), form="graph")
    result = ds.prune(dense, images, macs=0.7, structure=structure)

    facts = result.quantize(
        images, tmp_path / "model.onnx", tolerance=10.0, rounds=0, export={"dynamic_batch": False}
    )

    assert len(facts.quantized) == len(facts.layers)
    assert outputs_of(facts.path, images[:2])["fine"].shape == (2, 1, 12, 12)
    assert facts.tasks["fine"].pruned == result.report.deviation.final["fine"]
    assert facts.tasks["fine"].int8_from_dense is None


def test_too_few_images_leave_the_float_file(
    result: PruningResult, images: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(BatchError, match="too few"):
        result.quantize(images[:1], tmp_path / "model.onnx", rounds=0)

    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


PRUNE = ("prune", "--model", "net.py:build", "--data", "net.py:images", "--macs", "0.7", "--out", "small")


def test_the_command_writes_both_files_and_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--int8", "--int8-tolerance", "0.3", "--int8-tolerance", "fine=0.2")
    assert main([*PRUNE, *words]) == 0

    shown = capsys.readouterr().out
    assert "report.json, settings.toml, model.onnx, model.int8.onnx" in shown
    report = json.loads((project / "small" / "report.json").read_text())["int8"]
    assert {task: fact["tolerance"] for task, fact in report["tasks"].items()} == {"rough": 0.3, "fine": 0.2}
    assert (report["path"], report["float_path"]) == ("model.int8.onnx", "model.onnx")
    assert report["recommended"] in ("float", "int8")
    assert int8_layers(project / "small" / "model.int8.onnx") == sum(
        each["int8"] for each in report["layers"]
    )
    assert main(["show", "small"]) == 0
    again = capsys.readouterr().out
    assert report["verdict"] in again
    assert report["verdict"] in shown

    assert main([*PRUNE, "--int8", "--int8-tolerance", "1e-9"]) == 0
    assert "so no INT8 file was written" in capsys.readouterr().out
    assert not (project / "small" / "model.int8.onnx").exists()


def test_the_command_refuses_what_contradicts(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "belongs to --int8" in refusal(capsys, *PRUNE, "--int8-tolerance", "0.1")
    assert "Leave out --no-onnx" in refusal(capsys, *PRUNE, "--int8", "--no-onnx")
    assert "names 'deep'; the tasks are" in refusal(capsys, *PRUNE, "--int8", "--int8-tolerance", "deep=0.1")
    assert "not a number above 0" in refusal(capsys, *PRUNE, "--int8", "--int8-tolerance", "fine=0")
    twice = ("--int8-tolerance", "fine=0.1", "--int8-tolerance", "fine=0.2")
    assert "names 'fine' twice" in refusal(capsys, *PRUNE, "--int8", *twice)
    assert not (project / "small").exists()


class Columns(torch.nn.Module):
    """Has inputs and outputs that are called like operators and other values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 4)
        self.shared, self.head = torch.nn.Linear(8, 16), torch.nn.Linear(16, 2)

    def forward(self, cat: torch.Tensor, linear: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.shared(torch.cat([self.embed(cat), linear], 1)).relu()
        return {"relu": self.head(y), "val_0": y.mean(1), "model.head.weight": self.head(y).exp()}


def test_columns_and_tasks_that_are_called_like_operators(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = {"cat": torch.randint(0, 10, (24,)), "linear": torch.randn(24, 4)}
    result = ds.prune(Columns().eval(), data, macs=0.6)

    facts = result.quantize(data, tmp_path / "model.onnx", tolerance=10.0, rounds=0)

    assert len(facts.quantized) == len(facts.layers) > 0
    session = onnxruntime.InferenceSession(facts.path, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["cat", "linear"]
    assert [each.name for each in session.get_outputs()] == ["relu", "val_0", "model.head.weight"]
