"""Export a module to an ONNX file that is checked against PyTorch, and time it in ONNX Runtime."""

# ruff: noqa: E402  (a missing package is reported before it is imported)

from __future__ import annotations

from disparse_structured.errors import require

require("onnx", "onnx", "onnxscript", "onnxruntime")

from disparse_structured.export.latency import measure_latency
from disparse_structured.export.onnx_file import export_onnx
from disparse_structured.export.parity import check_parity

__all__ = ["check_parity", "export_onnx", "measure_latency"]
