"""A float ONNX file with some of its layers in INT8: quantize and dequantize nodes around them."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import quant_pre_process

from disparse_structured.errors import ExportError
from disparse_structured.export.quiet import quiet
from disparse_structured.export.reasons import reason

Bounds = Mapping[str, tuple[float, float]]
"""Tensor -> its least and its largest value."""

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators whose INT8 kernels of ONNX Runtime's CPU multiply."""

_WIDE = ("Gemm", "MatMul")
"""Their INT8 kernels give float32, so that their outputs need not be rounded."""

_JOINING = ("Add", "Mul", "Concat")
_MOVING = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Resize", "Split")
_CLAMPING = ("Relu", "Clip")
_FOLLOWERS = (*_JOINING, *_MOVING, *_CLAMPING, "LeakyRelu", "Sigmoid", "AveragePool", "GlobalAveragePool")
"""What is computed in INT8 exactly where everything that it reads is."""

CALIBRATED = (*LAYERS, *_FOLLOWERS)
"""The operators whose tensors need bounds."""

_OLDEST_OPSET = 13
_LARGEST = 2**31 - 1
_TINY = float(np.finfo(np.float32).tiny)
_HIDDEN = "__disparse_float"


@dataclass(frozen=True)
class Setting:
    """How layers become INT8.

    Args:
        method: that chose the bounds.
        bounds: the range of each tensor that may be quantized; asymmetric uint8.
        bits: of the weights, symmetric and by output channel: 8, or 7 where sums of products of 8 bits would
            saturate 16-bit registers (x86-64 without VNNI).
        shifts: by layer, float64 ``[channels]``: what is added to its bias.
    """

    method: str
    bounds: Bounds
    bits: int
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict)


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
        read = [node.input[position] for position in _data(node, self.weights)]
        return read if node.op_type in _WIDE else [*read, node.output[0]]

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
        per_result: int = math.prod(weight.dims) // max(weight.dims[_axis(node, weight)], 1)
        return results * per_result

    def exposing(self, names: Collection[str]) -> bytes:
        """The float model with the tensors ``names`` as further outputs."""
        return bytes(_exposing(self.model, names).SerializeToString())

    def quantized(
        self,
        layers: Collection[str],
        setting: Setting,
        *,
        followers: bool = True,
        expose: Collection[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> onnx.ModelProto:
        """The model with ``layers`` in INT8, and with them whatever only they feed.

        Args:
            layers: some of :attr:`layers`.
            setting: ranges, bits and shifts.
            followers: whether operators that read only INT8 tensors become INT8.
            expose: tensors that become further outputs.
            metadata: further entries of the file.
        """
        return _Insertion(self, frozenset(layers), setting, followers).model(expose, metadata or {})

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
            channels = constant.dims[_axis(node, constant)]
            if bias is None or list(bias.dims) != [channels] or options.get("beta", 1) != 1:
                return "its bias is not one constant for each channel"
        return None


_WEIGHTED = (*LAYERS, "ConvTranspose")


def size_of(path: Path) -> int:
    """Bytes of an ONNX file and of the weights beside it."""
    files = [path, path.with_name(f"{path.name}.data")]
    return sum(file.stat().st_size for file in files if file.is_file())


@dataclass(eq=False)
class _Insertion:
    """One quantized model in the making."""

    graph: FloatGraph
    layers: frozenset[str]
    setting: Setting
    with_followers: bool

    def __post_init__(self) -> None:
        self.bounds = dict(self.setting.bounds)
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        self.producers: dict[str, onnx.NodeProto] = {}
        for node in self.graph.model.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
            for name in node.output:
                self.producers[name] = node
        self.results = {output.name for output in self.graph.model.graph.output}
        self.chosen = set(self.layers)
        for node in self.graph.model.graph.node:
            if self.with_followers and self._follows(node):
                self.chosen.add(node.name)
            if node.name in self.chosen and node.op_type in _MOVING:
                for output in node.output:
                    self.bounds[output] = self.bounds[node.input[0]]
        # What an INT8 node gives, and everybody reads in its rounded form.
        self.given = {
            name
            for node in self.graph.model.graph.node
            if node.name in self.chosen and node.op_type not in _WIDE
            for name in node.output
            if name and not self._clamped(name)
        }

    def model(self, expose: Collection[str], metadata: Mapping[str, str]) -> onnx.ModelProto:
        source = self.graph.model
        made = onnx.ModelProto(ir_version=source.ir_version, producer_name=source.producer_name)
        made.opset_import.extend(source.opset_import)
        helper.set_model_props(made, {**{each.key: each.value for each in source.metadata_props}, **metadata})
        made.functions.extend(source.functions)
        made.graph.name = source.graph.name
        made.graph.input.extend(source.graph.input)
        made.graph.output.extend(source.graph.output)
        self.initializers: dict[str, onnx.TensorProto] = {}
        nodes = list(self._nodes())
        read = {name for node in nodes for name in node.input} | self.results | set(_captured(nodes))
        made.graph.initializer.extend(each for name, each in self.graph.weights.items() if name in read)
        made.graph.initializer.extend(self.initializers.values())
        made.graph.sparse_initializer.extend(source.graph.sparse_initializer)
        made.graph.node.extend(nodes)
        return _exposing(made, expose) if expose else made

    def _nodes(self) -> Iterator[onnx.NodeProto]:
        rounded: set[str] = set()
        for node in self.graph.model.graph.node:
            if node.name not in self.chosen:
                yield node
                continue
            made = onnx.NodeProto()
            made.CopyFrom(node)
            for position, name in enumerate(node.input):
                if name in self.given or position not in _data(node, self.graph.weights):
                    continue
                if self._clamped(name):
                    continue
                if name not in rounded:
                    rounded.add(name)
                    yield from self._pair(name, name, f"{name}__disparse_int8")
                made.input[position] = f"{name}__disparse_int8"
            yield from self._weights(node, made)
            for position, name in enumerate(node.output):
                if name in self.given:
                    made.output[position] = name + _HIDDEN
            yield made
            for name in node.output:
                if name in self.given:
                    yield from self._pair(name, name + _HIDDEN, name)

    def _pair(self, name: str, source: str, target: str) -> Iterator[onnx.NodeProto]:
        scale, zero = _affine(*self.bounds[name])
        constants = [
            self._constant(f"{name}__disparse_scale", np.float32(scale)),
            self._constant(f"{name}__disparse_zero", np.uint8(zero)),
        ]
        middle = f"{name}__disparse_uint8"
        yield helper.make_node("QuantizeLinear", [source, *constants], [middle], f"{name}__disparse_q")
        yield helper.make_node("DequantizeLinear", [middle, *constants], [target], f"{name}__disparse_dq")

    def _weights(self, node: onnx.NodeProto, made: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        constant = self.graph.weights.get(node.input[1]) if node.op_type in LAYERS else None
        if constant is None:
            return
        weight = numpy_helper.to_array(constant)
        axis = _axis(node, constant)
        bias = self._bias(node, weight.shape[axis])
        step = _affine(*self.bounds[node.input[0]])[0]
        scale = _scales(weight, axis, 2 ** (self.setting.bits - 1) - 1, bias, step)
        spread = scale.reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])
        limit = 2 ** (self.setting.bits - 1) - 1
        whole = np.clip(np.rint(weight / spread), -limit, limit).astype(np.int8)
        made.input[1] = yield from self._dequantized(f"{node.name}__disparse_weight", whole, scale, axis)
        if bias is not None:
            whole = np.rint(bias / (scale * step)).astype(np.int32)
            name = yield from self._dequantized(f"{node.name}__disparse_bias", whole, scale * step, 0)
            del made.input[2:]
            made.input.append(name)

    def _dequantized(
        self, name: str, whole: np.ndarray, scale: np.ndarray, axis: int
    ) -> Generator[onnx.NodeProto, None, str]:
        zeros = np.zeros(scale.shape, whole.dtype)
        inputs = [
            self._constant(f"{name}_int", whole),
            self._constant(f"{name}_scale", scale.astype(np.float32)),
            self._constant(f"{name}_zero", zeros),
        ]
        yield helper.make_node("DequantizeLinear", inputs, [name], f"{name}_dq", axis=axis)
        return name

    def _bias(self, node: onnx.NodeProto, channels: int) -> np.ndarray | None:
        given = node.input[2] if len(node.input) > 2 else ""
        shift = self.setting.shifts.get(node.name)
        if not given and shift is None:
            return None
        bias = numpy_helper.to_array(self.graph.weights[given]) if given else np.zeros(channels)
        return bias.astype(np.float64) + (0.0 if shift is None else shift)

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _follows(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in _FOLLOWERS:
            return False
        read = [node.input[position] for position in _data(node, self.graph.weights)]
        if node.op_type in _JOINING and len(read) < len(node.input):
            return False
        known = all(name in self.bounds for name in (*read, *node.output)) or node.op_type in _MOVING
        return known and all(
            name in self.bounds and name in self.producers and self.producers[name].name in self.chosen
            for name in read
        )

    def _clamped(self, name: str) -> bool:
        """Whether only an INT8 activation reads the tensor; ONNX Runtime merges it into its rounding."""
        readers = self.consumers.get(name, [])
        return (
            name not in self.results
            and len(readers) == 1
            and readers[0].op_type in _CLAMPING
            and readers[0].name in self.chosen
        )


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


def _exposing(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    made.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in present
    )
    return made


def _captured(nodes: list[onnx.NodeProto]) -> Iterator[str]:
    """Names that the bodies of ``If`` and ``Loop`` read from outside."""
    for node in nodes:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from (name for inner in body.node for name in inner.input)
                yield from _captured(list(body.node))


def _data(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> list[int]:
    """The positions of the inputs that hold activations."""
    if node.op_type in (*_JOINING, "MatMul"):
        return [position for position, name in enumerate(node.input) if name not in weights]
    return [0]


def _axis(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """The dimension of the weight that belongs to the output's channels."""
    if node.op_type == "Conv":
        return 0
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return len(weight.dims) - 1 if not transposed else 0


def _affine(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of uint8 over a range, which always holds zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255))
    if scale < _TINY:
        return 1.0, 0
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def _scales(weight: np.ndarray, axis: int, limit: int, bias: np.ndarray | None, step: float) -> np.ndarray:
    """The scale of each output channel: of its largest weight, and large enough for its bias in int32."""
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    largest = np.abs(weight).max(axis=others).astype(np.float64)
    scale = np.where(largest > 0, largest / limit, 1.0)
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias) / (step * _LARGEST) * 1.001)
    return np.maximum(scale, _TINY).astype(np.float32).astype(np.float64)
