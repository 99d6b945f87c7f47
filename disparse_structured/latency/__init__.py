"""Latency as a cost: the milliseconds that a network takes in a runtime, measured on this machine.

The unit of measurement is an operation of the exported graph as the runtime runs it, with what the runtime
has fused into it. Each is measured at several widths, see :mod:`~disparse_structured.latency.table`.
"""

from disparse_structured.latency.cost import Latency, LatencyModel
from disparse_structured.latency.onnx_runtime import OnnxRuntime
from disparse_structured.latency.openvino import OpenVINO
from disparse_structured.latency.runtime import Dissection, Part, Runtime
from disparse_structured.latency.table import Table, cache_folder

__all__ = [
    "Dissection",
    "Latency",
    "LatencyModel",
    "OnnxRuntime",
    "OpenVINO",
    "Part",
    "Runtime",
    "Table",
    "cache_folder",
]
