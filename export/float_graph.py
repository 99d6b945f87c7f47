"""A float ONNX file as data: its layers, its tasks, and which of its operators can be INT8."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from onnx import helper
from onnxruntime.quantization import quant_pre_process

from disparse_structured.errors import ExportError
from disparse_structured.export.quiet import quiet
from disparse_structured.export.reasons import reason

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators whose INT8 kernels of ONNX Runtime's CPU multiply."""

WIDE = ("Gemm", "MatMul")
"""Their INT8 kernels give float32, so that their outputs need not be rounded."""

JOINING = ("Add", "Mul", "Concat")
MOVING = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Resize", "Split")
CLAMPING = ("Relu", "Clip")
FOLLOWERS = (*JOINING, *MOVING, *CLAMPING, "LeakyRelu", "Sigmoid", "AveragePool", "GlobalAveragePool")
"""What is computed in INT8 exactly where everything that it reads is."""

CALIBRATED = (*LAYERS, *FOLLOWERS)
"""The operators whose tensors need bounds."""

_OLDEST_OPSET = 13
_LARGEST = 2**31 - 1


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """A float ONNX model, prepared by ONNX Runtime's own preprocessing, whose nodes have distinct names.

    ``unsupported`` says by layer why it cannot become INT8.
    """

    model: onnx.ModelProto
    unsupported: Mapping[str, str]

    @classmethod
    def load(cls, path: Path) -> FloatGraph:
        """Read the file at ``path``.

        Raises:
            ExportError: there is no such file, it is not ONNX, its opset is too old, it is larger than 2 GB,
                or it is quantized already.
        """
        if not path.is_file():
            raise ExportError(f"there is no ONNX file at {path}. Export the model first.")
        if size_of(path) > _LARGEST:
            raise ExportError(f"{path} and its weights exceed 2 GB, the most that ONNX can hold in memory.")
        try:
            given = onnx.load(path)
            onnx.checker.check_model(path)
        except Exception as error:
            raise ExportError(
                f"{path} is not a valid ONNX file: {reason(error)}. Export it again."
            ) from error
        opset = next((each.version for each in given.opset_import if each.domain in ("", "ai.onnx")), 0)
        if opset < _OLDEST_OPSET:
            raise ExportError(
                f"{path} is of opset {opset}. INT8 weights by channel need {_OLDEST_OPSET} or newer: "
                "export it again, or convert it with onnx.version_converter."
            )
        quantized = sum(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in given.graph.node)
        if quantized:
            raise ExportError(
                f"{path} is quantized already: it holds {quantized} Q/DQ nodes. Give the float file."
            )
        model = _prepared(path, given)
        _name_nodes(model.graph)
        graph = cls(model, {})
        reasons = {node.name: graph._obstacle(node) for node in model.graph.node if node.op_type in _WEIGHTED}
        return cls(model, {name: why for name, why in reasons.items() if why})

    @cached_property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        """All nodes by name, in the order of the file."""
        return {node.name: node for node in self.model.graph.node}

    @cached_property
    def weights(self) -> dict[str, onnx.TensorProto]:
        """The initializers by name."""
        return {each.name: each for each in self.model.graph.initializer}

    @cached_property
    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """By tensor, the nodes that read it."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """By tensor, the node that gives it."""
        return {name: node for node in self.model.graph.node for name in node.output}

    @cached_property
    def results(self) -> frozenset[str]:
        """The names of the outputs."""
        return frozenset(output.name for output in self.model.graph.output)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that can become INT8."""
        return tuple(
            name
            for name, node in self.nodes.items()
            if node.op_type in LAYERS and name not in self.unsupported
        )

    @property
    def tasks(self) -> dict[str, list[str]]:
        """Task -> names of its outputs, as the export wrote them; without that, every output is a task."""
        written = {entry.key: entry.value for entry in self.model.metadata_props}.get("outputs")
        names = [output.name for output in self.model.graph.output]
        if written is not None:
            found = json.loads(written)
            if [name for each in found.values() for name in each] == names:
                return {task: list(each) for task, each in found.items()}
        return {name: [name] for name in names}

    def tensors(self, layer: str) -> list[str]:
        """The names of the tensors that need bounds if ``layer`` alone is INT8."""
        node = self.nodes[layer]
        read = [node.input[position] for position in data_positions(node, self.weights)]
        return read if node.op_type in WIDE else [*read, node.output[0]]

    def output_of(self, layer: str) -> str:
        """The name of the tensor that ``layer`` gives."""
        return str(self.nodes[layer].output[0])

    def channels(self, layer: str) -> int | None:
        """The dimension of the layer's output that its bias belongs to; None if it can have no bias."""
        return {"Conv": 1, "Gemm": -1}.get(self.nodes[layer].op_type)

    @property
    def shaping(self) -> list[str]:
        """The tensors whose shapes tell how often layers multiply."""
        given = {each.name for each in self.model.graph.input}
        tensors = [
            name for layer in self.layers for name in (self.output_of(layer), self.nodes[layer].input[0])
        ]
        return [name for name in dict.fromkeys(tensors) if name not in given]

    def multiplications(self, layer: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """How often ``layer`` multiplies, with tensors of ``shapes``."""
        node = self.nodes[layer]
        results = math.prod(shapes[node.output[0]])
        weight = self.weights.get(node.input[1])
        if weight is None:
            return results * (shapes[node.input[0]][-1] if node.input[0] in shapes else 1)
        per_result: int = math.prod(weight.dims) // max(weight.dims[channel_axis(node, weight)], 1)
        return results * per_result

    def exposing(self, names: Collection[str]) -> bytes:
        """The float model with the tensors ``names`` as further outputs."""
        return bytes(exposed(self.model, names).SerializeToString())

    def _obstacle(self, node: onnx.NodeProto) -> str | None:
        if node.op_type not in LAYERS:
            return f"ONNX Runtime's CPU has no INT8 kernel for {node.op_type}"
        constant = self.weights.get(node.input[1])
        if node.input[0] in self.weights:
            return "its first factor is constant"
        if constant is None:
            return None if node.op_type == "MatMul" else "its weight is computed"
        if node.op_type == "MatMul" and len(constant.dims) != 2:
            return f"its weight has {len(constant.dims)} dimensions"
        if constant.data_type != onnx.TensorProto.FLOAT:
            return f"its weight is {onnx.TensorProto.DataType.Name(constant.data_type).lower()}, not float32"
        options = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Gemm" and (options.get("transA") or options.get("alpha", 1) != 1):
            return "it transposes or scales its input"
        if len(node.input) > 2 and node.input[2]:
            bias = self.weights.get(node.input[2])
            channels = constant.dims[channel_axis(node, constant)]
            if bias is None or list(bias.dims) != [channels] or options.get("beta", 1) != 1:
                return "its bias is not one constant for each channel"
        return None


_WEIGHTED = (*LAYERS, "ConvTranspose")


def size_of(path: Path) -> int:
    """Bytes of an ONNX file and of the weights beside it."""
    files = [path, path.with_name(f"{path.name}.data")]
    return sum(file.stat().st_size for file in files if file.is_file())


def _prepared(path: Path, given: onnx.ModelProto) -> onnx.ModelProto:
    """The model after ONNX Runtime's preprocessing; where that fails, with inferred shapes only.

    The symbolic shape inference is left out: the exporter writes shapes, and it stops on some free sizes.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        try:
            with quiet():
                quant_pre_process(path, prepared, skip_symbolic_shape=True)
            model = onnx.load(prepared)
        except Exception:
            try:
                model = onnx.shape_inference.infer_shapes(given)
            except Exception as error:
                raise ExportError(f"{path} cannot be prepared for INT8: {reason(error)}.") from error
    del model.metadata_props[:]
    model.metadata_props.extend(given.metadata_props)
    return model


def _name_nodes(graph: onnx.GraphProto) -> None:
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}_{node.output[0]}"
        taken.add(node.name)


def exposed(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """``model`` with the tensors ``names`` as further outputs."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    made.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in present
    )
    return made


def data_positions(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> list[int]:
    """The positions of the inputs that hold activations."""
    if node.op_type in (*JOINING, "MatMul"):
        return [position for position, name in enumerate(node.input) if name not in weights]
    return [0]


def channel_axis(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """The dimension of the weight that belongs to the output's channels."""
    if node.op_type == "Conv":
        return 0
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return len(weight.dims) - 1 if not transposed else 0
