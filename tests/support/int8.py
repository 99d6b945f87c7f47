"""A network in which one task tolerates INT8 and the other does not, and independent measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn


class Lopsided(nn.Module):
    """The trunk's first channel is a thousand times larger than the others; ``fine`` reads only those."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.trunk = nn.Conv2d(8, 8, 3, padding=1)
            self.rough, self.fine = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 1, 1)
        with torch.no_grad():
            self.trunk.weight[0] *= 1000
            self.fine.weight[:, 0] = 0
            self.rough.weight[:, 1:] = 0

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.trunk(self.stem(image).relu()).relu()
        return {"rough": self.rough(features), "fine": self.fine(features)}


def outputs_of(path: str | Path | None, images: torch.Tensor) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes, by the name of the output."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: images.numpy()}), strict=True))


def deviation(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(float) - wanted) / np.linalg.norm(wanted.astype(float)))


def int8_layers(path: str | Path | None) -> int:
    """How many weights of the file are integers."""
    model = onnx.load(path)
    integers = {each.name for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8}
    dequantized = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    return len(integers & set(dequantized))
