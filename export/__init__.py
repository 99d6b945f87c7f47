"""A plain module becomes an ONNX file that is proven against PyTorch, and is timed in ONNX Runtime."""

from __future__ import annotations

from disparse_structured.export.latency import measure_latency
from disparse_structured.export.onnx_file import export_onnx
from disparse_structured.export.parity import check_parity

__all__ = ["check_parity", "export_onnx", "measure_latency"]
