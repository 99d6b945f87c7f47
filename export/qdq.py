"""Some layers of a float ONNX file in INT8: quantize and dequantize nodes around them."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from disparse_structured.export.float_graph import (
    CLAMPING,
    FOLLOWERS,
    JOINING,
    LAYERS,
    MOVING,
    WIDE,
    FloatGraph,
    channel_axis,
    data_positions,
    exposed,
)

Bounds = Mapping[str, tuple[float, float]]
"""Tensor -> its least and its largest value."""

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


def quantized(
    graph: FloatGraph,
    layers: Collection[str],
    setting: Setting,
    *,
    followers: bool = True,
    expose: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The model with ``layers`` in INT8, and with them whatever only they feed.

    Args:
        graph: the float model.
        layers: some of its :attr:`~FloatGraph.layers`.
        setting: ranges, bits and shifts.
        followers: whether operators that read only INT8 tensors become INT8.
        expose: tensors that become further outputs.
        metadata: further entries of the file.
    """
    return _Insertion(graph, frozenset(layers), setting, followers).model(expose, metadata or {})


def transitions(
    graph: FloatGraph, layers: Collection[str], setting: Setting
) -> tuple[frozenset[str], frozenset[str]]:
    """The tensors that are rounded, and those that become float again, with ``layers`` in INT8.

    The model is that of :func:`quantized`. Between two INT8 nodes neither happens.
    """
    made = _Insertion(graph, frozenset(layers), setting, True)
    chosen = [node for node in graph.model.graph.node if node.name in made.chosen]
    read = {node.input[place] for node in chosen for place in data_positions(node, graph.weights)}
    passed = {name for node in chosen for name in node.output}
    restored = {
        name
        for name in made.given
        if name in made.results or any(each.name not in made.chosen for each in made.consumers.get(name, []))
    }
    return frozenset(read - passed), frozenset(restored)


@dataclass(eq=False)
class _Insertion:
    """One quantized model in the making."""

    graph: FloatGraph
    layers: frozenset[str]
    setting: Setting
    with_followers: bool

    def __post_init__(self) -> None:
        self.bounds = dict(self.setting.bounds)
        self.consumers, self.producers = self.graph.consumers, self.graph.producers
        self.results = self.graph.results
        self.chosen = set(self.layers)
        for node in self.graph.model.graph.node:
            if self.with_followers and self._follows(node):
                self.chosen.add(node.name)
            if node.name in self.chosen and node.op_type in MOVING:
                for output in node.output:
                    self.bounds[output] = self.bounds[node.input[0]]
        # What an INT8 node gives, and everybody reads in its rounded form.
        self.given = {
            name
            for node in self.graph.model.graph.node
            if node.name in self.chosen and node.op_type not in WIDE
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
        return exposed(made, expose) if expose else made

    def _nodes(self) -> Iterator[onnx.NodeProto]:
        rounded: set[str] = set()
        for node in self.graph.model.graph.node:
            if node.name not in self.chosen:
                yield node
                continue
            made = onnx.NodeProto()
            made.CopyFrom(node)
            for position, name in enumerate(node.input):
                if name in self.given or position not in data_positions(node, self.graph.weights):
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
        axis = channel_axis(node, constant)
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
        if node.op_type not in FOLLOWERS:
            return False
        read = [node.input[position] for position in data_positions(node, self.graph.weights)]
        if node.op_type in JOINING and len(read) < len(node.input):
            return False
        known = all(name in self.bounds for name in (*read, *node.output)) or node.op_type in MOVING
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
            and readers[0].op_type in CLAMPING
            and readers[0].name in self.chosen
        )


def _captured(nodes: list[onnx.NodeProto]) -> Iterator[str]:
    """Names that the bodies of ``If`` and ``Loop`` read from outside."""
    for node in nodes:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from (name for inner in body.node for name in inner.input)
                yield from _captured(list(body.node))


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
