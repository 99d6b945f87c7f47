"""Runtimes leave the thread that calls them as it was: denormal numbers, and its stack for signals."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch

from disparse_structured.errors import ExportError
from disparse_structured.export import export_onnx
from disparse_structured.latency import OnnxRuntime, OpenVINO

Runtime = OnnxRuntime | OpenVINO


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux, see sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int | None, int]:
    found = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.start, found.size


def flushing() -> bool:
    return sys.float_info.min / 2 == 0.0


@pytest.fixture
def _normal() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(params=[OnnxRuntime, OpenVINO])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    kind: Callable[[], Runtime] = request.param
    if kind is OpenVINO:
        pytest.importorskip("openvino")
    return kind()


@pytest.mark.usefixtures("_normal")
@pytest.mark.parametrize("before", [False, True])
def test_the_caller_keeps_its_denormal_numbers_and_signals(
    runtime: Runtime, before: bool, tmp_path: Path
) -> None:
    model, inputs = torch.nn.Conv2d(3, 8, 3).eval(), (torch.randn(1, 3, 8, 8),)
    path = tmp_path / "model.onnx"
    export_onnx(model, inputs, path, outputs={"task": lambda y: y}, dynamic_batch=False, dynamic_size=False)
    stack = signal_stack()

    torch.set_flush_denormal(before)
    for measure in (
        lambda: runtime.time_files([path, path, path], inputs, rounds=1),
        lambda: runtime.dissect(path, inputs),
        lambda: runtime.time_nodes(onnx.load(path)),
    ):
        measure()
        assert flushing() == before
        assert signal_stack() == stack


def test_an_error_reaches_the_caller(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    stack = signal_stack()
    with pytest.raises(ExportError, match=r"OpenVINO refuses model\.onnx"):
        OpenVINO().time_files([tmp_path / "model.onnx"], (torch.randn(1, 3, 8, 8),), rounds=1)
    assert signal_stack() == stack
