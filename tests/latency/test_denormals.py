"""Denormal numbers count as zero while a network is timed, and only then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch

from disparse_structured.export import export_onnx
from disparse_structured.latency import OnnxRuntime, OpenVINO


def flushing() -> bool:
    return sys.float_info.min / 2 == 0.0


@pytest.fixture
def _normal() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("_normal")
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVINO])
def test_the_caller_keeps_its_denormal_numbers(
    kind: Callable[[], OnnxRuntime | OpenVINO], before: bool, tmp_path: Path
) -> None:
    if kind is OpenVINO:
        pytest.importorskip("openvino")
    model, inputs = torch.nn.Conv2d(3, 8, 3).eval(), (torch.randn(1, 3, 8, 8),)
    export_onnx(
        model,
        inputs,
        tmp_path / "model.onnx",
        outputs={"task": lambda y: y},
        dynamic_batch=False,
        dynamic_size=False,
    )
    runtime = kind()

    torch.set_flush_denormal(before)
    for measure in (
        lambda: runtime.time_files([tmp_path / "model.onnx"], inputs, rounds=1),
        lambda: runtime.dissect(tmp_path / "model.onnx", inputs),
        lambda: runtime.time_nodes(onnx.load(tmp_path / "model.onnx")),
    ):
        measure()
        assert flushing() == before
