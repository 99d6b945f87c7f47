"""Operations of a runtime with their widths left open, and models that hold one at many widths."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from disparse_structured.latency.table import Widths

if TYPE_CHECKING:
    import onnx

    from disparse_structured.latency.runtime import Part

WEIGHTED = ("Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm")
"""Operators that have a weight."""

CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")


@dataclass(frozen=True)
class Operation:
    """One operation of a runtime without its widths. Equal ones take equally long at equal widths.

    Args:
        node: what it does, without names: its type, domain and attributes, but for ``group``.
        shape: of what it reads, with 0 for the number of channels.
        kernel: the dimensions of the weight besides the two widths.
        biased: whether it adds one number per channel that it makes.
        groups: into how many groups the channels are divided; None where this follows ``grouped``.
        grouped: the channels of a group, where groups come and go with channels, as in depthwise
            convolutions.
        label: a short name for tables.
    """

    node: bytes = field(repr=False)
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    biased: bool
    groups: int | None
    grouped: int | None
    label: str

    @property
    def key(self) -> str:
        """The name in a table of times."""
        facts = (self.node.hex(), self.shape, self.kernel, self.biased, self.groups, self.grouped)
        return f"{self.label} #{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"

    @property
    def family(self) -> tuple[object, ...]:
        """What operations have in common that are fast on the same widths."""
        return (self.label.partition(" on ")[0], self.groups, self.grouped)

    @property
    def positions(self) -> int:
        """How many positions a channel has that it reads."""
        return int(np.prod([size or 1 for size in self.shape]))

    def groups_at(self, read: int) -> int:
        """Into how many groups ``read`` channels are divided."""
        return self.groups if self.groups is not None else read // (self.grouped or 1)

    def weight_shape(self, widths: Widths) -> tuple[int, ...]:
        """The shape of the weight."""
        import onnx

        node = onnx.NodeProto.FromString(self.node)
        read, made = widths
        if node.op_type == "ConvTranspose":
            return (read, made, *self.kernel)
        if node.op_type in CONVOLUTIONS:
            return (made, read // self.groups_at(read), *self.kernel)
        return (made, read) if makes_first(node) else (read, made)

    @classmethod
    def of(cls, part: Part, *, groups_follow: bool) -> Operation | None:
        """The operation of ``part``, or None where it is not one that is measured by its widths."""
        node, weight = part.node, part.weight
        if node is None or weight is None or not part.shape:
            return None
        group = next((each.i for each in node.attribute if each.name == "group"), 1)
        convolution = node.op_type in CONVOLUTIONS
        if weight.ndim < 2 or (not convolution and weight.ndim != 2) or _odd(node, group):
            return None
        channel = 1 if convolution else len(part.shape) - 1
        shape = tuple(0 if place == channel else size for place, size in enumerate(part.shape))
        follows = group > 1 and groups_follow
        return cls(
            node=_bare(node),
            shape=shape,
            kernel=tuple(weight.shape[2:]),
            biased=len(node.input) > 2 and bool(node.input[2]),
            groups=None if follows else group,
            grouped=weight.shape[1] if follows else None,
            label=_label(node, shape, weight, follows),
        )


def makes_first(node: onnx.NodeProto) -> bool:
    """Whether the first dimension of the node's weight is what it makes, not what it reads."""
    if node.op_type in CONVOLUTIONS:
        return node.op_type != "ConvTranspose"
    return any(each.name == "transB" and each.i for each in node.attribute)


def model_of(points: Sequence[tuple[Operation, Widths]], opsets: Mapping[str, int]) -> onnx.ModelProto:
    """A model with one node for each of ``points``, named by its position. Weights are random.

    As in a network, the input of each node has just been written, and its output is read next and then
    freed, so that memory that is still in the processor's caches is reused.
    """
    import onnx
    from onnx import helper, numpy_helper

    random = np.random.default_rng(0)
    inputs, nodes, outputs, weights = {}, [], [], []

    def constant(name: str, values: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(values, name))
        return name

    def normal(name: str, shape: tuple[int, ...]) -> str:
        return constant(name, random.standard_normal(shape, np.float32) * 0.05)

    for number, (operation, widths) in enumerate(points):
        read, made = widths
        node = onnx.NodeProto.FromString(operation.node)
        shape = [size or read for size in operation.shape]
        source = "x" + "_".join(map(str, shape))
        inputs[source] = helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, shape)
        name = str(number)
        written, last = f"written{name}", f"last{name}"
        # A number of its own, or the runtime would see that several nodes write the same.
        shift = constant(f"shift{name}", np.array((number + 1) / 1024, dtype=np.float32))
        node.name = name
        node.output.append(name)
        node.input.extend([written, normal(f"weight{name}", operation.weight_shape(widths))])
        if operation.biased:
            node.input.append(normal(f"bias{name}", (made,)))
        if node.op_type in CONVOLUTIONS:
            node.attribute.append(helper.make_attribute("group", operation.groups_at(read)))
        bounds = [constant(f"bound{each}_{name}", np.full(len(shape), each)) for each in (0, 1)]
        nodes += [
            helper.make_node("Add", [source, shift], [written]),
            node,
            helper.make_node("Slice", [name, *bounds], [last]),
        ]
        outputs.append(helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, [1] * len(shape)))
    graph = helper.make_graph(nodes, "widths", list(inputs.values()), outputs, weights)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _bare(node: onnx.NodeProto) -> bytes:
    import onnx

    bare = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    kept = [each for each in node.attribute if each.name != "group"]
    bare.attribute.extend(sorted(kept, key=lambda each: each.name))
    found: bytes = bare.SerializeToString(deterministic=True)
    return found


def _odd(node: onnx.NodeProto, group: int) -> bool:
    """Whether the node is of a form that is not measured: grouped and transposed, or a transposed input."""
    transposed = any(each.name == "transA" and each.i for each in node.attribute)
    return transposed or (node.op_type == "ConvTranspose" and group > 1)


def _label(node: onnx.NodeProto, shape: tuple[int, ...], weight: np.ndarray, follows: bool) -> str:
    words = [node.op_type]
    if node.op_type in CONVOLUTIONS:
        words[0] = "Conv" if node.op_type == "FusedConv" else node.op_type
        if follows and weight.shape[1] == 1:
            words.append("depthwise")
        words.append("x".join(map(str, weight.shape[2:])))
        strides = next((list(each.ints) for each in node.attribute if each.name == "strides"), [])
        if any(stride > 1 for stride in strides):
            words.append(f"/{max(strides)}")
    activation = next((each.s.decode() for each in node.attribute if each.name == "activation"), "")
    if activation:
        words.append(f"+ {activation}")
    return f"{' '.join(words)} on {'x'.join(str(size or 'C') for size in shape)}"
