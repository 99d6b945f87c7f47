"""A runtime whose clock is a formula, so that tests know every time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from disparse_structured.latency import Dissection, OnnxRuntime, Part

_CONVOLUTIONS = ("Conv", "FusedConv")


@dataclass
class PaperRuntime:
    """Counts padded multiply-accumulates of what ONNX Runtime makes of a file; a million take 1 ms.

    What is read counts as the next multiple of ``step``, and three times if it is no multiple of ``aligned``;
    what is made counts as the next multiple of ``step``. Whole files take ``overhead`` times as long as their
    parts. ``timed`` counts the nodes that were timed on their own; the user stops after ``stop_after``.
    """

    step: int = 8
    aligned: int = 4
    overhead: float = 1.0
    reads: OnnxRuntime = field(default_factory=OnnxRuntime)
    timed: int = 0
    stop_after: int | None = None

    @property
    def facts(self) -> Mapping[str, str]:
        return {"runtime": "paper", "step": str(self.step), "aligned": str(self.aligned)}

    def inputs(self, example_inputs: tuple[Any, ...], dynamic: str) -> tuple[Any, ...]:
        return self.reads.inputs(example_inputs, dynamic)

    def dissect(self, path: Path, inputs: tuple[Any, ...]) -> Dissection:
        found = self.reads.dissect(path, inputs)
        return Dissection(tuple(self._priced(part) for part in found.parts), found.opsets)

    def time_nodes(self, model: onnx.ModelProto) -> Mapping[str, float]:
        if self.stop_after is not None and self.timed > self.stop_after:
            raise KeyboardInterrupt
        shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in model.graph.input
        }
        shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        shapes |= {
            node.output[0]: shapes[node.input[0]] for node in model.graph.node if node.op_type == "Add"
        }
        named = [node for node in model.graph.node if node.name]
        self.timed += len(named)
        return {node.name: self._price(node, shapes[node.input[0]], shapes[node.input[1]]) for node in named}

    def time_files(self, paths: Sequence[Path], inputs: tuple[Any, ...], *, rounds: int) -> np.ndarray:
        each = [sum(part.ms for part in self.dissect(path, inputs).parts) * self.overhead for path in paths]
        return np.tile(each, (rounds, 1))

    def _priced(self, part: Part) -> Part:
        if part.node is None or part.weight is None:
            return dataclasses.replace(part, ms=0.0)
        return dataclasses.replace(part, ms=self._price(part.node, part.shape, part.weight.shape))

    def _price(self, node: onnx.NodeProto, shape: Sequence[int], weight: Sequence[int]) -> float:
        if node.op_type not in _CONVOLUTIONS:
            return math.prod(shape[:-1]) * math.prod(weight) / 1e6
        made, read = weight[0], shape[1]
        group = next((each.i for each in node.attribute if each.name == "group"), 1)
        slow = 3 if read % self.aligned else 1
        padded = slow * self._up(made) * self._up(read) // group
        return math.prod(shape) / read * math.prod(weight[2:]) * padded / 1e6

    def _up(self, width: int) -> int:
        return -(-width // self.step) * self.step
