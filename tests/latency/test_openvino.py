"""OpenVINO as a runtime: what it runs is found again in the file, timed, and its absence is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.errors import ExportError, MissingExtraError, OptionError
from disparse_structured.export import export_onnx
from disparse_structured.latency import Latency, OpenVINO, Table
from tests.support.command_line import refusal

COMMAND = ("latency", "--model", "torch.nn:Identity", "--example", "1x3x8x8", "--runtime", "openvino")


def test_a_runtime_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what Python itself does for a blocked import
    remedy = r"openvino cannot be found. Run: pip install 'disparse-structured[openvino]'"
    with pytest.raises(MissingExtraError) as caught:
        OpenVINO()
    assert remedy in str(caught.value)
    assert remedy in refusal(capsys, *COMMAND)


def test_a_runtime_belongs_to_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "prune",
        "--model",
        "torch.nn:Identity",
        "--data",
        "torch:rand",
        "--out",
        "small",
        "--macs",
        "0.5",
    )
    assert "--runtime belongs to --latency TIME" in refusal(capsys, *words, "--runtime", "openvino")


class Fusing(nn.Module):
    """What OpenVINO fuses: activations, sums, batch norms, scaled outputs, two matrix products in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.scale = nn.Parameter(torch.rand(16, 1, 1))
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 4)
        self.mask = nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(x)
        x = x + self.scale * self.point(self.depthwise(x))
        return {"mask": self.mask(x), "label": self.narrow(self.wide(x.mean((2, 3))).relu())}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    pytest.importorskip("openvino", reason="openvino is not installed")
    torch.manual_seed(0)
    return Fusing().eval()


@pytest.fixture(scope="module")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openvino") / "model.onnx"
    tasks = {task: lambda found, task=task: found[task] for task in ("mask", "label")}
    export_onnx(model, torch.randn(2, 3, 24, 24), path, outputs=tasks)
    return path


def test_every_weight_is_found_once_in_what_runs(exported: Path) -> None:
    parts = OpenVINO().dissect(exported, (torch.randn(1, 3, 24, 24),)).parts

    weighted = {part.weight_name: part for part in parts if part.weight is not None}
    kinds = ("Conv", "Gemm", "MatMul")
    wanted = {node.input[1] for node in onnx.load(exported).graph.node if node.op_type in kinds}
    assert weighted.keys() == wanted
    assert len(wanted) == len([part for part in parts if part.node is not None]) == 6
    assert weighted["model.depthwise.weight"].shape == (1, 16, 12, 12)
    for place, part in enumerate(parts):
        assert part.ms >= 0
        assert all(source < place and count > 0 for source, count in part.sources)
    assert sum(part.ms for part in weighted.values()) > 0


def test_a_network_is_measured_and_narrower_ones_are_predicted(model: nn.Module, tmp_path: Path) -> None:
    structure, runtime = ds.analyse(model, torch.randn(2, 3, 24, 24)), OpenVINO()
    table = Table(runtime.facts, tmp_path)

    found = Latency(model, runtime, table=table).on(structure)

    assert len(found.work.entry) == 6
    keep = torch.arange(structure.units) % 4 == 0
    assert 0 < found.total(keep) < found.dense
    assert len(table) > 50
    assert runtime.facts["runtime"].startswith("openvino ")


def test_files_run_in_turn_and_others_are_refused(exported: Path, tmp_path: Path) -> None:
    runtime = OpenVINO(batch=2, size=(16, 16))
    inputs = runtime.inputs((torch.randn(1, 3, 24, 24),), "batch+size")
    assert [tensor.shape for tensor in inputs] == [(2, 3, 16, 16)]
    times = runtime.time_files([exported, exported], inputs, rounds=4)
    assert times.shape == (4, 2)
    assert np.all(times > 0)

    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(ExportError, match=r"OpenVINO refuses text\.onnx"):
        runtime.time_files([tmp_path / "text.onnx"], inputs, rounds=1)
    with pytest.raises(OptionError, match="threads=0, batch=1, size=None: each must be a whole number"):
        OpenVINO(threads=0)
