"""OpenVINO as a :class:`~disparse_structured.latency.runtime.Runtime`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from disparse_structured.errors import ExportError, require
from disparse_structured.latency.operations import CONVOLUTIONS, WEIGHTED, makes_first
from disparse_structured.latency.runtime import Dissection, Part
from disparse_structured.latency.setting import (
    QUIET,
    check_setting,
    in_own_thread,
    inputs_of,
    timed_in_turn,
)
from disparse_structured.report.machine import processor, processor_digest

if TYPE_CHECKING:
    import onnx
    import openvino

_COMPILED = 5
"""How often a model is compiled to time its parts: OpenVINO reports the mean over all runs since then."""

_COLD, _RUNS = 2, 8
"""Runs after each compilation: first those that are not counted, then those that are."""


@dataclass(frozen=True)
class OpenVINO:
    """OpenVINO on the processor of this machine, with float32 numbers and one inference at a time.

    Denormal numbers count as zero. Files are compiled for the shapes that they are timed with.

    Args:
        threads: threads of one inference.
        batch: examples in a batch.
        size: the dimensions of the inputs from the third on, such as ``(224, 224)``; by default those of the
            example inputs.

    Raises:
        OptionError: a number is below 1.
        MissingExtraError: OpenVINO or ONNX is not installed.
    """

    threads: int = 1
    batch: int = 1
    size: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_setting(self.threads, self.batch, self.size)
        require("onnx", "onnx", "onnxscript", "onnxruntime")
        require("openvino", "openvino")

    @property
    def facts(self) -> Mapping[str, str]:
        """Version, processor, threads and the kind of numbers."""
        import openvino

        return {
            "runtime": f"openvino {openvino.__version__}",
            "processor": f"{processor()} ({processor_digest()})",
            "threads": str(self.threads),
            "dtype": "float32",
        }

    def inputs(self, example_inputs: tuple[Any, ...], dynamic: str, /) -> tuple[torch.Tensor, ...]:
        """See :func:`~disparse_structured.latency.setting.inputs_of`."""
        return inputs_of(example_inputs, dynamic, batch=self.batch, size=self.size)

    @in_own_thread
    def dissect(self, path: Path, inputs: tuple[torch.Tensor, ...], /) -> Dissection:
        """The operations that run, with the time that each takes in the whole network.

        Where OpenVINO fuses several operations with weights into one, its time is divided in proportion to
        the sizes of their weights.
        """
        import onnx

        model = onnx.load(path)
        for number, node in enumerate(model.graph.node):
            node.name = f"node{number}"
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        weighted = [
            each for each in model.graph.node if each.op_type in WEIGHTED and each.input[1] in weights
        ]
        compiled, times = self._profiled(model.SerializeToString(), path.name, inputs)
        operations = compiled.get_runtime_model().get_ordered_ops()
        named = set().union(*map(_origins, operations))
        # OpenVINO names what makes an output of the file after that output, and what it scales by a constant
        # after the multiplication.
        names = {node.name: {node.name, node.output[0]} for node in weighted}
        for node in weighted:
            if not names[node.name] & named:
                names[node.name] = {each.name for each in model.graph.node if node.output[0] in each.input}
        places: dict[str, int] = {}
        parts: list[Part] = []
        for operation in operations:
            if _fact(operation, "layerType") == "Const":
                continue
            name, origins = operation.get_friendly_name(), _origins(operation)
            read = [(each.get_source_output(), tuple(each.get_shape())) for each in operation.inputs()]
            sources = tuple(
                (places[source.get_node().get_friendly_name()], math.prod(shape))
                for source, shape in read
                if source.get_node().get_friendly_name() in places
            )
            nodes = [node for node in weighted if origins & names[node.name]]
            if nodes:
                held = [(node, onnx.numpy_helper.to_array(weights[node.input[1]])) for node in nodes]
                parts += _chain(name, times.get(name, 0.0), sources, held, read[0][1], len(parts))
            else:
                parts.append(Part(name, times.get(name, 0.0), sources))
            places[name] = len(parts) - 1
        opsets = {each.domain: each.version for each in model.opset_import}
        return Dissection(tuple(parts), opsets)

    @in_own_thread
    def time_nodes(self, model: onnx.ModelProto, /) -> Mapping[str, float]:
        """See :meth:`~disparse_structured.latency.runtime.Runtime.time_nodes`."""
        random = np.random.default_rng(0)
        shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input]
        inputs = [torch.from_numpy(random.standard_normal(shape, np.float32)) for shape in shapes]
        compiled, times = self._profiled(model.SerializeToString(), "a model of single operations", inputs)
        found = dict.fromkeys((node.name for node in model.graph.node if node.name), 0.0)
        for operation in compiled.get_runtime_model().get_ordered_ops():
            for name in found.keys() & _origins(operation):
                found[name] += times.get(operation.get_friendly_name(), 0.0)
        return found

    @in_own_thread
    def time_files(
        self, paths: Sequence[Path], inputs: tuple[torch.Tensor, ...], /, *, rounds: int
    ) -> np.ndarray:
        """See :meth:`~disparse_structured.latency.runtime.Runtime.time_files`.

        The clock is that of :func:`~disparse_structured.latency.setting.timed_in_turn`.
        """
        feed = [tensor.numpy() for tensor in inputs]
        requests = [self._compiled(path, path.name, inputs).create_infer_request() for path in paths]
        runs = [partial(request.infer, feed, share_inputs=True) for request in requests]
        return timed_in_turn(runs, rounds=rounds, threads=self.threads)

    def _profiled(
        self, file: bytes, name: str, inputs: Sequence[torch.Tensor]
    ) -> tuple[openvino.CompiledModel, dict[str, float]]:
        """The compiled file, and the time of each of its operations."""
        feed = [tensor.numpy() for tensor in inputs]
        measured: dict[str, list[float]] = {}
        for _ in range(_COMPILED):
            compiled = self._compiled(file, name, inputs, PERF_COUNT=True)
            request = compiled.create_infer_request()
            sums = []
            for runs in (_COLD, _RUNS):
                for _ in range(runs):
                    request.infer(feed, share_inputs=True)
                sums.append(dict(_means(request)))
            for each, mean in sums[1].items():
                total = mean * (_COLD + _RUNS) - sums[0][each] * _COLD
                measured.setdefault(each, []).append(max(total / _RUNS, 0.0))
        return compiled, {each: float(np.quantile(times, QUIET)) for each, times in measured.items()}

    def _compiled(
        self, file: Path | bytes, name: str, inputs: Sequence[torch.Tensor], **options: Any
    ) -> openvino.CompiledModel:
        """Raises :class:`ExportError` if OpenVINO refuses the file, which is called ``name``."""
        import openvino

        from disparse_structured.export.reasons import reason

        core = openvino.Core()
        try:
            model = core.read_model(file)
            model.reshape({place: list(tensor.shape) for place, tensor in enumerate(inputs)})
            return core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": self.threads,
                    "NUM_STREAMS": 1,
                    "INFERENCE_PRECISION_HINT": "f32",
                    "CPU_DENORMALS_OPTIMIZATION": True,
                    **options,
                },
            )
        except Exception as error:
            raise ExportError(f"OpenVINO refuses {name}: {reason(error)}") from error


def _chain(
    name: str,
    ms: float,
    sources: tuple[tuple[int, int], ...],
    held: Sequence[tuple[onnx.NodeProto, np.ndarray]],
    shape: tuple[int, ...],
    place: int,
) -> list[Part]:
    """One fused operation as a part for each node in ``held``, each after the one that it reads."""
    total = sum(weight.size for _, weight in held)
    parts = []
    for number, (node, weight) in enumerate(held):
        own = ms * weight.size / total
        parts.append(Part(f"{name}.{number}", own, sources, node, weight, node.input[1], shape))
        axis = 1 if node.op_type in CONVOLUTIONS else len(shape) - 1
        made = weight.shape[0 if makes_first(node) else 1]
        shape = tuple(made if dim == axis else size for dim, size in enumerate(shape))
        sources = ((place + number, math.prod(shape)),)
    return parts


def _means(request: openvino.InferRequest) -> Iterator[tuple[str, float]]:
    """The mean time of each operation over the runs of ``request``, milliseconds."""
    for info in request.get_profiling_info():
        yield info.node_name, info.real_time.total_seconds() * 1e3


def _origins(operation: openvino.Node) -> set[str]:
    """The names of the nodes of the file that became ``operation``."""
    return set(_fact(operation, "originalLayersNames").split(","))


def _fact(operation: openvino.Node, name: str) -> str:
    return str(operation.get_rt_info()[name].value)
