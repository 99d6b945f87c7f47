"""Layers of an ONNX file in float and in INT8: the time of each alone, and of conversions between the two."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from disparse_structured.latency.onnx_runtime import OnnxRuntime
from disparse_structured.latency.table import Table, Widths

if TYPE_CHECKING:
    import onnx

    from disparse_structured.export.float_graph import FloatGraph

_RANGE = (-4.0, 4.0)
"""The range of all tensors; times do not depend on it."""


@dataclass(frozen=True, eq=False)
class Int8Times:
    """Milliseconds of each layer, ``as_float`` and in ``int8``, and of conversions by size.

    ``quantize`` and ``dequantize`` are float64 ``[2, n]``: sizes of tensors, ascending, and their times.
    """

    as_float: Mapping[str, float]
    int8: Mapping[str, float]
    quantize: np.ndarray
    dequantize: np.ndarray

    def between(self, rounded: Collection[int], restored: Collection[int]) -> float:
        """The time of all conversions: of tensors to INT8, and of others back to float, by their sizes."""
        return _sum(rounded, self.quantize) + _sum(restored, self.dequantize)


def _sum(sizes: Collection[int], known: np.ndarray) -> float:
    """The time of all ``sizes``: interpolated between known ones, and in proportion above the largest."""
    if not sizes:
        return 0.0
    wanted = np.array(list(sizes), dtype=float)
    beyond = np.maximum(wanted / known[0, -1], 1.0)
    return float((np.interp(wanted, *known) * beyond).sum())


def int8_times(
    graph: FloatGraph,
    layers: Collection[str],
    shapes: Mapping[str, tuple[int, ...]],
    runtime: OnnxRuntime,
    table: Table | None = None,
) -> Int8Times:
    """Time each of ``layers`` on its own, with tensors of ``shapes``, unless its times are known.

    Args:
        graph: the float file.
        layers: some of its layers.
        shapes: of their inputs and outputs, by the name of the tensor.
        runtime: what times are measured in.
        table: where they are kept; by default one of its own in the cache folder.
    """
    table = Table({**runtime.facts, "dtype": "int8"}) if table is None else table
    found = {name: _Layer.of(graph, name, shapes) for name in layers}
    missing = {
        layer.key: layer for layer in found.values() if layer.widths not in table.times(f"{layer.key} int8")
    }
    if missing:
        _measure(list(missing.values()), graph, runtime, table)

    def known(what: str) -> dict[str, float]:
        return {name: table.times(f"{layer.key} {what}")[layer.widths] for name, layer in found.items()}

    def by_size(what: str, place: int) -> np.ndarray:
        sizes = {layer.sizes[place]: known(what)[name] for name, layer in found.items()}
        return np.array(sorted(sizes.items()), dtype=float).reshape(-1, 2).T

    return Int8Times(known("float"), known("int8"), by_size("quantize", 0), by_size("dequantize", 1))


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer: its ``node``, the shapes of its inputs, and the ``sizes`` of its input and output."""

    node: onnx.NodeProto
    reads: tuple[tuple[int, ...], ...]
    sizes: tuple[int, int]
    widths: Widths
    key: str

    @classmethod
    def of(cls, graph: FloatGraph, name: str, shapes: Mapping[str, tuple[int, ...]]) -> _Layer:
        from disparse_structured.export.float_graph import data_positions

        node = graph.nodes[name]
        reads = tuple(tuple(shapes[node.input[place]]) for place in data_positions(node, graph.weights))
        weights = [tuple(graph.weights[each].dims) for each in node.input if each in graph.weights]
        attributes = sorted(each.SerializeToString(deterministic=True).hex() for each in node.attribute)
        facts = hashlib.sha256(repr((node.op_type, attributes, reads, weights)).encode()).hexdigest()[:12]
        gives = shapes[node.output[0]]
        channel = 1 if node.op_type == "Conv" else -1
        sizes = int(np.prod(reads[0])), int(np.prod(gives))
        label = f"{node.op_type} on {'x'.join(map(str, reads[0]))}"
        return cls(node, reads, sizes, (reads[0][channel], (gives or (1,))[channel]), f"{label} #{facts}")


def _measure(layers: list[_Layer], graph: FloatGraph, runtime: OnnxRuntime, table: Table) -> None:
    from disparse_structured.export.qdq import Setting, quantized

    alone = _alone(layers, graph)
    tensors = [name for node in alone.model.graph.node for name in (*node.input, *node.output)]
    setting = Setting("given", dict.fromkeys(tensors, _RANGE), 8)
    before = runtime.time_nodes(alone.model)
    after = runtime.time_nodes(quantized(alone, alone.layers, setting, followers=False))
    for number, layer in enumerate(layers):
        name = f"disparse_layer{number}"
        own = [ms for each, ms in after.items() if each == name or each.startswith(f"{name}_token")]
        found = {
            "float": before[name],
            "quantize": sum(after.get(f"disparse_x{number}_{place}__disparse_q", 0.0) for place in (0, 1)),
            "dequantize": after.get(f"{name}__disparse_dq", 0.0),
            "int8": sum(own) if own else before[name],  # the last: where it is known, all are
        }
        for what, ms in found.items():
            table.add(f"{layer.key} {what}", {layer.widths: ms})


def _alone(layers: list[_Layer], graph: FloatGraph) -> FloatGraph:
    """A graph in which every layer reads inputs of its own."""
    import onnx
    from onnx import helper

    from disparse_structured.export.float_graph import FloatGraph, data_positions

    nodes, inputs, outputs = [], [], []
    weights: dict[str, onnx.TensorProto] = {}
    for number, layer in enumerate(layers):
        node = onnx.NodeProto()
        node.CopyFrom(layer.node)
        node.name = f"disparse_layer{number}"
        node.output[0] = node.name
        places = data_positions(layer.node, graph.weights)
        for place, shape in zip(places, layer.reads, strict=True):
            node.input[place] = f"disparse_x{number}_{place}"
            inputs.append(helper.make_tensor_value_info(node.input[place], onnx.TensorProto.FLOAT, shape))
        weights |= {name: graph.weights[name] for name in node.input if name in graph.weights}
        nodes.append(node)
        outputs.append(helper.make_tensor_value_info(node.name, onnx.TensorProto.FLOAT, None))
    made = helper.make_graph(nodes, "layers", inputs, outputs, list(weights.values()))
    model = helper.make_model(made, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    return FloatGraph(model, {})
